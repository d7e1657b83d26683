"""SparseGPT against brute force in float64, and what stacking and stepping must not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.methods import sparsegpt
from prunelab.methods.sparsegpt import SparseGPT
from prunelab.methods.wanda import Wanda
from prunelab.pattern.base import Rounding
from prunelab.sparsity.element import Budget
from prunelab.stats.gram import Gram
from prunelab.stats.view import View

R, C = 6, 20


def inputs(columns: int = C, tokens: int = 60, dead: tuple[int, ...] = ()) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    x[:, list(dead)] = 0
    return x


def view(W: Tensor, x: Tensor, rows: tuple[int, ...] | None = None) -> View:
    rows = rows or (W.shape[0],)
    H = x.T @ x / x.shape[0]
    return View(
        names=tuple(f"layer{i}" for i in range(len(rows))),
        rows=rows,
        W=W,
        values={"input_norm": x.square().mean(0).sqrt(), "input_gram": Gram(H, "layer")},
        generators=tuple(torch.Generator().manual_seed(i) for i in range(len(rows))),
    )


def weights(rows: int = R, columns: int = C) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(11))


def method(block: int = 8) -> SparseGPT:
    return SparseGPT("sparsegpt", 1, None, block, 0.01)


def brute_force(
    W: Tensor, x: Tensor, block: int, ratio: float, nm: tuple[int, int] | None, published: bool = False
) -> tuple[Tensor, Tensor]:
    """OBS by its definition: remove one column's entries at a time, with the inverse of the Hessian of the
    columns not yet passed; float64, no Cholesky."""
    W, x = W.double().clone(), x.double()
    H = x.T @ x / x.shape[0]
    diagonal = H.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean()
    H = H + 0.01 * mean * torch.diag((~dead).double()) + torch.diag(dead.double())
    W[:, dead] = 0
    rows, columns = W.shape
    keep = torch.ones(rows, columns, dtype=torch.bool)
    inverses = [torch.linalg.inv(H[c:, c:]) for c in range(columns)]
    scale = torch.stack([inverse[0, 0] for inverse in inverses])
    for c in range(columns):
        if nm is None and c % block == 0:
            last = min(c + block, columns)
            score = W[:, c:last].square() / scale[c:last]
            count = int(score.numel() * ratio + 1e-6)
            if not published:  # blocks add up to what the layer loses
                count = int(rows * last * ratio + 1e-6) - int((~keep).sum())
            gone = torch.zeros(score.numel(), dtype=torch.bool)
            gone[score.flatten().argsort(stable=True)[:count]] = True
            keep[:, c:last] = ~gone.view(score.shape)
        if nm is not None and c % nm[1] == 0:
            score = W[:, c : c + nm[1]].square() / scale[c : c + nm[1]]
            order = score.argsort(dim=1, stable=True)[:, : nm[1] - nm[0]]
            keep[:, c : c + nm[1]] = torch.ones_like(score, dtype=torch.bool).scatter_(1, order, False)
        inverse = inverses[c]
        for r in range(rows):
            if not keep[r, c]:
                W[r, c:] -= W[r, c] / inverse[0, 0] * inverse[0]
                W[r, c] = 0
    return keep, W


@pytest.mark.parametrize("block", [4, 7, 16, 20, 128])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("rounding", ["exact", "published"])
def test_unstructured_equals_brute_force(block: int, ratio: float, rounding: Rounding) -> None:
    W, x = weights(), inputs()
    keep, updated = method(block).prune(view(W, x), [Budget(ratio, None, rounding)])
    expected_keep, expected = brute_force(W, x, block, ratio, None, rounding == "published")
    assert torch.equal(keep, expected_keep)
    torch.testing.assert_close(updated.double(), expected, rtol=2e-3, atol=2e-4)
    assert not bool(updated[~keep].any())


@pytest.mark.parametrize(("n", "m", "columns"), [(2, 4, 20), (1, 4, 20), (4, 8, 40), (3, 5, 20), (2, 3, 24)])
def test_nm_equals_brute_force(n: int, m: int, columns: int) -> None:
    W, x = weights(columns=columns), inputs(columns, tokens=120)
    keep, updated = method(8).prune(view(W, x), [Budget(1 - n / m, (n, m))])
    expected_keep, expected = brute_force(W, x, 8, 0, (n, m))
    assert torch.equal(keep, expected_keep)
    assert set(keep.reshape(-1, m).sum(1).tolist()) == {n}
    torch.testing.assert_close(updated.double(), expected, rtol=2e-3, atol=3e-4)


def test_dead_inputs_lose_their_weights_and_touch_no_other() -> None:
    dead = (0, 7, 19)
    W, x = weights(), inputs(dead=dead)
    keep, updated = method().prune(view(W, x), [Budget(0.5, None)])
    expected_keep, expected = brute_force(W, x, 8, 0.5, None)
    assert torch.equal(keep, expected_keep)
    assert not bool(updated[:, list(dead)].any())
    torch.testing.assert_close(updated.double(), expected, rtol=2e-3, atol=2e-4)
    # the scale of the inputs, against which a dead input's diagonal of 1 stands, does not matter
    again, _ = method().prune(view(W, x * 1000), [Budget(0.5, None)])
    assert torch.equal(again, keep)


def test_stacked_layers_are_pruned_as_if_alone() -> None:
    W, x = weights(18, 40), inputs(40, 200)
    budgets = [Budget(0.5, None), Budget(0.25, None), Budget(0.5, None)]
    keep, updated = method(16).prune(view(W, x, (6, 4, 8)), budgets)
    start = 0
    for rows, budget in zip((6, 4, 8), budgets, strict=True):
        part = slice(start, start + rows)
        alone_keep, alone = method(16).prune(view(W[part], x), [budget])
        assert torch.equal(keep[part], alone_keep)
        torch.testing.assert_close(updated[part], alone, rtol=1e-5, atol=1e-6)
        start += rows


def test_steps_inside_a_block_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    W, x = weights(8, 64), inputs(64, 300)
    results = []
    for step in (1, 5, 16, 64):
        monkeypatch.setattr(sparsegpt, "STEP", step)
        results.append(method(32).prune(view(W, x), [Budget(0.5, None)]))
    for keep, updated in results[1:]:
        assert torch.equal(keep, results[0][0])
        torch.testing.assert_close(updated, results[0][1], rtol=1e-4, atol=1e-5)


def test_counts_are_exact_per_block_and_layer() -> None:
    W, x = weights(5, 40), inputs(40, 100)
    keep, _ = method(16).prune(view(W, x), [Budget(0.5, None)])
    for start in (0, 16, 32):
        part = keep[:, start : start + 16]
        assert int((~part).sum()) == part.numel() // 2


def test_error_lies_between_the_masks_optimum_and_no_update() -> None:
    W, x = weights().double(), inputs().double()
    H = x.T @ x / x.shape[0]
    H += 0.01 * H.diagonal().mean() * torch.eye(C)

    def loss(V: Tensor) -> float:
        return float((((V - W) @ H) * (V - W)).sum())

    keep, updated = method().prune(view(W.float(), x.float()), [Budget(0.5, None)])
    best = torch.zeros_like(W)
    for r in range(R):
        kept = keep[r].nonzero()[:, 0]
        best[r, kept] = torch.linalg.solve(H[kept][:, kept], H[kept] @ W[r])
    assert loss(best) <= loss(updated.double()) <= loss(W * keep)


def test_the_inverse_factor_is_the_published_one_and_kept() -> None:
    x = inputs()
    found = view(weights(), x).input_gram
    U, dead = found.inverse_factor(0.01)
    H = (x.T @ x / x.shape[0]).double()
    H += 0.01 * H.diagonal().mean() * torch.eye(C)
    published = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    torch.testing.assert_close(U.double(), published, rtol=1e-4, atol=1e-5)
    assert not bool(dead.any())
    assert found.inverse_factor(0.01)[0] is U


def test_wanda_scores_are_weights_times_norms() -> None:
    W, x = weights(), inputs()
    score = Wanda("wanda", 1, None).score(view(W, x))
    torch.testing.assert_close(score, W.abs() * x.square().mean(0).sqrt())
