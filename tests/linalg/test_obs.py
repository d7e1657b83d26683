"""OBS algebra against the dense solution with F = kron(G, A), float64, 7 x 9."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.linalg import factor, obs
from prunelab.methods.kobd import KOBD
from prunelab.methods.lobd import LOBD
from prunelab.methods.surgeon import Surgeon
from prunelab.stats.gram import Gram
from prunelab.stats.view import View

R, C = 7, 9
EXACT = Surgeon("surgeon", 1, None, 0.0, 0.0, "full", 2000, 1e-20, 200)
ROW_SETS = [[], [2], [0, 3, 4, 6], list(range(R))]
COLUMN_SETS = [[], [8], [1, 2, 5, 7, 8], list(range(C))]


def spd(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(3 * n, n, generator=generator, dtype=torch.float64)
    X = X * torch.arange(1, n + 1) ** -0.5
    return X.T @ X / n


@pytest.fixture(params=[0, 1])
def problem(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + request.param)
    W = torch.randn(R, C, generator=generator, dtype=torch.float64)
    return W, spd(R, request.param), spd(C, 10 + request.param)


def view(W: Tensor, G: Tensor, A: Tensor) -> View:
    values = {"input_gram": Gram(A, "A"), "output_gram": Gram(G, "G")}
    return View(("site",), (R,), W, (torch.Generator().manual_seed(0),), values, True)


def keep_mask(n: int, gone: list[int]) -> Tensor:
    keep = torch.ones(n, dtype=torch.bool)
    keep[gone] = False
    return keep


def generic(W: Tensor, G: Tensor, A: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Cost and delta of removing the entries where keep (R, C) is False, from the RC x RC Fisher."""
    inverse = torch.linalg.inv(torch.kron(G, A))
    K = (~keep).reshape(-1).nonzero()[:, 0]
    theta = W.reshape(-1)[K]
    z = torch.linalg.solve(inverse[K][:, K], theta)
    return theta @ z / 2, -(inverse[:, K] @ z).reshape(R, C)


def loss(delta: Tensor, G: Tensor, A: Tensor) -> Tensor:
    return torch.trace(delta.T @ G @ delta @ A) / 2


def same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-8)


def test_row_and_column_costs_equal_the_generic_cost(problem) -> None:
    W, G, A = problem
    rows, columns = EXACT.costs(view(W, G, A))
    everything = torch.ones(R, C, dtype=torch.bool)
    for r in range(R):
        keep = everything.clone()
        keep[r] = False
        same(rows[r], generic(W, G, A, keep)[0])
    for c in range(C):
        keep = everything.clone()
        keep[:, c] = False
        same(columns[c], generic(W, G, A, keep)[0])


@pytest.mark.parametrize("rows", ROW_SETS)
@pytest.mark.parametrize("columns", COLUMN_SETS)
def test_updates_equal_the_generic_joint_solution(problem, rows: list[int], columns: list[int]) -> None:
    W, G, A = problem
    keep_rows, keep_columns = keep_mask(R, rows), keep_mask(C, columns)
    keep = keep_rows[:, None] & keep_columns[None, :]
    cost, delta = generic(W, G, A, keep)
    updated = EXACT.update(view(W, G, A), keep_rows, keep_columns)
    same(updated, W + delta)
    same(loss(updated - W, G, A), cost)
    assert torch.equal(updated[~keep], torch.zeros_like(updated[~keep]))


def test_cost_equals_the_loss_of_its_own_update(problem) -> None:
    W, G, A = problem
    site = view(W, G, A)
    rows, columns = EXACT.costs(site)
    all_rows, all_columns = keep_mask(R, []), keep_mask(C, [])
    for r in range(R):
        same(rows[r], loss(EXACT.update(site, keep_mask(R, [r]), all_columns) - W, G, A))
    for c in range(C):
        same(columns[c], loss(EXACT.update(site, all_rows, keep_mask(C, [c])) - W, G, A))


def test_joint_closed_form_and_order_of_variants(problem) -> None:
    W, G, A = problem
    rows, columns = [0, 3, 5], [1, 2, 6, 8]
    P, Q = keep_mask(R, rows), keep_mask(C, columns)
    D = torch.zeros_like(W)
    D[~P] = -W[~P]
    D[:, ~Q] = -W[:, ~Q]
    delta = D.clone()
    right = (G @ D @ A)[P][:, Q]
    block = -torch.linalg.solve(G[P][:, P], right) @ torch.linalg.inv(A[Q][:, Q])
    delta[P.nonzero(), Q.nonzero()[:, 0]] = block
    joint = EXACT.update(view(W, G, A), P, Q) - W
    same(joint, delta)

    independent = (
        Surgeon("surgeon", 1, None, 0.0, 0.0, "independent", 2000, 0.1, 200).update(view(W, G, A), P, Q) - W
    )
    summed_rows = EXACT.update(view(W, G, A), P, keep_mask(C, [])) - W
    summed_columns = EXACT.update(view(W, G, A), keep_mask(R, []), Q) - W
    summed = W + summed_rows + summed_columns
    summed = summed * P[:, None] * Q[None, :] - W
    best = loss(joint, G, A)
    assert best < loss(summed, G, A)
    assert best < loss(independent, G, A) < loss(D, G, A)
    assert loss(summed, G, A) < loss(D, G, A)


def test_independent_update_is_the_sum_of_single_updates(problem) -> None:
    W, G, A = problem
    P, Q = keep_mask(R, [1, 4]), keep_mask(C, [0, 7, 8])
    expected = W.clone()
    for r in [1, 4]:
        expected += EXACT.update(view(W, G, A), keep_mask(R, [r]), keep_mask(C, [])) - W
    for c in [0, 7, 8]:
        expected += EXACT.update(view(W, G, A), keep_mask(R, []), keep_mask(C, [c])) - W
    updated = Surgeon("surgeon", 1, None, 0.0, 0.0, "independent", 2000, 0.1, 200).update(view(W, G, A), P, Q)
    same(updated, expected * P[:, None] * Q[None, :])


def test_with_identity_output_factor_columns_are_least_squares() -> None:
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(40, C, generator=generator, dtype=torch.float64)
    W = torch.randn(R, C, generator=generator, dtype=torch.float64)
    Q = keep_mask(C, [0, 4, 5])
    updated = EXACT.update(view(W, torch.eye(R, dtype=torch.float64), X.T @ X), keep_mask(R, []), Q)
    for r in range(R):
        best = torch.linalg.lstsq(X[:, Q], X @ W[r]).solution
        same(updated[r, Q], best)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_scaling_the_factors_scales_costs_and_leaves_updates(problem, damping: float) -> None:
    W, G, A = problem
    method = Surgeon("surgeon", 1, None, damping, damping, "full", 2000, 0.1, 200)
    plain, scaled = view(W, G, A), view(W, 1e-7 * G, 3e4 * A)
    P, Q = keep_mask(R, [0, 2]), keep_mask(C, [3, 4, 8])
    for left, right in zip(method.costs(plain), method.costs(scaled), strict=True):
        torch.testing.assert_close(left * 3e-3, right, rtol=1e-8, atol=0)
    same(method.update(plain, P, Q), method.update(scaled, P, Q))
    for left, right in zip(
        KOBD("kobd", 1, None).costs(plain), KOBD("kobd", 1, None).costs(scaled), strict=True
    ):
        torch.testing.assert_close(left * 3e-3, right, rtol=1e-8, atol=0)


def test_kobd_costs_equal_the_diagonal_blocks(problem) -> None:
    W, G, A = problem
    rows, columns = KOBD("kobd", 1, None).costs(view(W, G, A))
    for r in range(R):
        delta = torch.zeros_like(W)
        delta[r] = -W[r]
        same(rows[r], loss(delta, G, A))
    for c in range(C):
        delta = torch.zeros_like(W)
        delta[:, c] = -W[:, c]
        same(columns[c], loss(delta, G, A))


def test_eigen_form_of_the_inverse_fisher_agrees(problem) -> None:
    X, G, A = problem
    G, A = factor.damped(G, 0.1), factor.damped(A, 0.01)
    s1, K1 = torch.linalg.eigh(G)
    s2, K2 = torch.linalg.eigh(A)
    eigen = K1 @ ((K1.T @ X @ K2) / torch.outer(s1, s2)) @ K2.T
    same(eigen.reshape(-1), torch.linalg.solve(torch.kron(G, A), X.reshape(-1)))
    same(factor.inverse_diagonal(G, "G"), (K1**2 / s1).sum(1))


def test_damping_is_relative_and_leaves_the_input() -> None:
    G = spd(R, 5)
    before = G.clone()
    expected = G + 0.1 * G.diagonal().mean() * torch.eye(R, dtype=torch.float64)
    same(factor.damped(G, 0.1), expected)
    assert torch.equal(G, before)
    assert factor.damped(G.float(), 0.1).dtype == torch.float64


def test_singular_factor_is_named() -> None:
    with pytest.raises(ModelError, match=r"fc2.*not positive definite.*method.damping"):
        factor.inverse_diagonal(-torch.eye(3, dtype=torch.float64), "fc2")


def test_gram_computes_its_inverse_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = factor.inverse_diagonal
    monkeypatch.setattr(factor, "inverse_diagonal", lambda m, what: calls.append(what) or original(m, what))
    gram = Gram(spd(R, 5), "A")
    assert gram.inverse_diagonal(0.1) is gram.inverse_diagonal(0.1)
    gram.inverse_diagonal(0.2)
    assert calls == ["A", "A"]


def test_view_without_a_factor_says_what_to_add() -> None:
    site = View(("fc1",), (2,), torch.ones(2, 2), (torch.Generator(),))
    with pytest.raises(ModelError, match=r"fc1.*'input_gram'"):
        _ = site.A
    with pytest.raises(ModelError, match=r"fc1.*'output_gram'"):
        _ = site.G


# Single weights

SETS = ["one", "row", "few", "half", "most"]


def keep_of(kind: str) -> Tensor:
    """Which of the 63 weights stay."""
    generator = torch.Generator().manual_seed(len(kind))
    keep = torch.ones(R, C, dtype=torch.bool)
    if kind == "one":
        keep[3, 4] = False
    elif kind == "row":
        keep[2] = False
    else:
        count = {"few": 6, "half": 31, "most": 55}[kind]
        keep.view(-1)[torch.randperm(R * C, generator=generator)[:count]] = False
    return keep


def test_costs_of_single_weights_equal_the_generic_cost(problem) -> None:
    W, G, A = problem
    scores = EXACT.score(view(W, G, A))
    for r in range(R):
        for c in range(C):
            keep = torch.ones(R, C, dtype=torch.bool)
            keep[r, c] = False
            same(scores[r, c], generic(W, G, A, keep)[0])


def test_brain_damage_costs_leave_out_what_their_papers_leave_out(problem) -> None:
    W, G, A = problem
    fisher = torch.kron(G, A).diagonal().view(R, C)
    same(KOBD("kobd", 1, None).score(view(W, G, A)), W.square() * fisher / 2)
    same(LOBD("lobd", 1, None).score(view(W, G, A)), W.square() * A.diagonal() / 2)


@pytest.mark.parametrize("kind", SETS)
def test_the_joint_update_equals_the_generic_solution(problem, kind: str) -> None:
    W, G, A = problem
    keep = keep_of(kind)
    cost, delta = generic(W, G, A, keep)
    updated = EXACT.update_kept(view(W, G, A), keep)
    same(updated, W + delta)
    same(loss(updated - W, G, A), cost)
    assert not updated[~keep].any()


@pytest.mark.parametrize("kind", SETS)
def test_groups_as_large_as_the_set_are_exact_and_smaller_ones_are_not(problem, kind: str) -> None:
    W, G, A = problem
    keep, cost = keep_of(kind), generic(W, G, A, keep_of(kind))[0]
    same(obs.remove_elements_in_groups(W, G, A, keep, 63), W + generic(W, G, A, keep)[1])
    rows = obs.remove_elements_in_groups(W, G, A, keep, 1)  # every row is a group
    assert loss(rows - W, G, A) >= cost - 1e-12
    assert not rows[~keep].any()


def test_a_group_sees_what_the_groups_before_made_of_its_weights(problem) -> None:
    """By hand, with full matrices as the published code has them: row by row, each from the weights as they are."""
    W, G, A = problem
    keep = keep_of("half")
    Gi, Ai, updated = torch.linalg.inv(G), torch.linalg.inv(A), W.clone()
    for r in range(R):
        gone = (~keep[r]).nonzero()[:, 0]
        Z = torch.zeros_like(W)
        Z[r, gone] = torch.linalg.solve(Gi[r, r] * Ai[gone][:, gone], updated[r, gone])
        updated = updated - Gi @ Z @ Ai
    same(obs.remove_elements_in_groups(W, G, A, keep, 1), updated * keep)


def test_row_groups_hold_whole_rows() -> None:
    assert list(obs._row_groups([3, 3, 3, 9, 1, 0], 6)) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert list(obs._row_groups([], 6)) == []


@pytest.mark.parametrize("seed", range(5))
def test_joint_is_at_most_grouped_and_independent_and_these_at_most_none(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(R, C, generator=generator, dtype=torch.float64)
    G, A = spd(R, 20 + seed), spd(C, 30 + seed)
    keep = torch.ones(R, C, dtype=torch.bool)
    keep.view(-1)[EXACT.score(view(W, G, A)).flatten().argsort()[:25]] = False
    joint, grouped, none = (
        loss(one - W, G, A)
        for one in (
            EXACT.update_kept(view(W, G, A), keep),
            obs.remove_elements_in_groups(W, G, A, keep, 5),
            W * keep,
        )
    )
    independent = loss(obs.remove_elements_singly(W, G, A, keep) - W, G, A)
    assert joint <= grouped <= none
    assert joint <= independent <= none


def test_independent_is_the_sum_of_single_updates(problem) -> None:
    W, G, A = problem
    keep, expected = keep_of("few"), W.clone()
    for r, c in (~keep).nonzero().tolist():
        one = torch.ones_like(keep)
        one[r, c] = False
        expected += generic(W, G, A, one)[1]
    same(obs.remove_elements_singly(W, G, A, keep), expected * keep)


def test_with_identity_output_factor_every_row_is_least_squares_on_its_own_columns() -> None:
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(40, C, generator=generator, dtype=torch.float64)
    W = torch.randn(R, C, generator=generator, dtype=torch.float64)
    keep = keep_of("half")
    updated = EXACT.update_kept(view(W, torch.eye(R, dtype=torch.float64), X.T @ X), keep)
    for r in range(R):
        same(updated[r, keep[r]], torch.linalg.lstsq(X[:, keep[r]], X @ W[r]).solution)


def test_scales_of_the_factors_change_costs_alone(problem) -> None:
    W, G, A = problem
    keep, scaled = keep_of("half"), view(W, 4 * G, 0.25 * A)
    same(EXACT.score(view(W, 4 * G, 8 * A)), 32 * EXACT.score(view(W, G, A)))
    same(EXACT.update_kept(scaled, keep), EXACT.update_kept(view(W, G, A), keep))


def test_the_tolerance_bounds_the_quadratic_loss() -> None:
    W = torch.randn(40, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    G, A = spd(40, 1), spd(60, 2)
    keep = torch.rand(40, 60, generator=torch.Generator().manual_seed(4)) > 0.5
    exact = obs.remove_elements(W, G, A, keep, tolerance=1e-14, iterations=2000)
    rough = obs.remove_elements(W, G, A, keep, tolerance=0.1, iterations=2000)
    best, found = loss(exact.X - W, G, A), loss(rough.X - W, G, A)
    assert rough.iterations < exact.iterations
    assert best <= found <= best * (1 + rough.gap) <= best * 1.1
    cut = obs.remove_elements(W, G, A, keep, tolerance=1e-14, iterations=3)
    assert cut.iterations == 3
    assert cut.gap > 1e-3  # told, not hidden
    assert best < loss(cut.X - W, G, A) < loss(W * keep - W, G, A)


def test_summed_adds_both_updates_of_the_original_weight(problem) -> None:
    """float64 oracle: each update alone is the generic one; the sum is no better than the joint."""
    W, G, A = problem
    P, Q = keep_mask(R, [0, 3, 5]), keep_mask(C, [1, 2, 6, 8])
    everything = torch.ones(R, C, dtype=torch.bool)
    rows, columns = generic(W, G, A, everything & P[:, None])[1], generic(W, G, A, everything & Q)[1]
    summed = obs.remove_summed(W, G, A, P, Q)
    same(summed, (W + rows + columns) * (P[:, None] & Q))
    assert loss(EXACT.update(view(W, G, A), P, Q) - W, G, A) < loss(summed - W, G, A)
    same(obs.remove_summed(W, G, A, P, keep_mask(C, [])), W + rows)
