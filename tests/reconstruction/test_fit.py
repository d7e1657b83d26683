"""Fitting alone: the exact solver against direct solves, gradient against exact, schedule, counts, overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunelab.errors import ModelError
from prunelab.linalg.masked import descend_masked, solve_masked
from prunelab.models.inputs import catch_inputs, groups
from prunelab.models.random import random_decoder
from prunelab.reconstruction import fit as fitting
from prunelab.reconstruction.fit import Trained, fit
from prunelab.reconstruction.tuning import mean_square
from prunelab.reconstruction.walk import reconstruct
from prunelab.sparsity.mask import Elementwise

Make = Callable[..., Any]


def problem(R: int = 7, C: int = 24, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Dense weights V (R, C), an ill-conditioned Gram matrix H (C, C), a random mask; float64."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, C + 1, dtype=torch.float64) ** -1.0
    basis = torch.linalg.qr(torch.randn(C, C, generator=generator, dtype=torch.float64)).Q
    H = basis @ torch.diag(spectrum) @ basis.T
    V = torch.randn(R, C, generator=generator, dtype=torch.float64)
    return V, H, torch.rand(R, C, generator=generator) < 0.5


def direct(V: Tensor, H: Tensor, keep: Tensor) -> Tensor:
    """One float64 solve per row on its kept columns."""
    X = torch.zeros_like(V)
    for r in range(V.shape[0]):
        kept = keep[r].nonzero()[:, 0]
        X[r, kept] = torch.linalg.solve(H[kept][:, kept], H[kept] @ V[r])
    return X


@pytest.mark.parametrize("seed", range(4))
def test_conjugate_gradients_equal_direct_solves_of_every_row(seed: int) -> None:
    V, H, keep = problem(seed=seed)
    keep[0] = False  # nothing kept
    keep[1] = True  # nothing removed
    found = solve_masked(V * keep, V @ H, H, keep, tolerance=1e-18, iterations=500, name="x")
    torch.testing.assert_close(found.X, direct(V, H, keep), rtol=1e-8, atol=1e-9)
    assert not bool(found.X[~keep].any())
    assert found.residual < 1e-8
    assert found.iterations < 60


def wide(kind: str, R: int = 24, C: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """A wide layer with an ill-conditioned Gram matrix, damped as by default: a power law, or few tokens after a ReLU."""
    generator = torch.Generator().manual_seed(3)
    if kind == "few tokens":
        mixing = torch.randn(48, C, generator=generator, dtype=torch.float64)
        x = torch.relu(torch.randn(300, 48, generator=generator, dtype=torch.float64) @ mixing - 3)
        H = x.T @ x / len(x)
    else:
        spectrum = torch.arange(1, C + 1, dtype=torch.float64) ** -3.0
        basis = torch.linalg.qr(torch.randn(C, C, generator=generator, dtype=torch.float64)).Q
        H = basis @ torch.diag(spectrum) @ basis.T
    H += 1e-4 * H.diagonal().mean() * torch.eye(C, dtype=torch.float64)
    V = torch.randn(R, C, generator=generator, dtype=torch.float64)
    return V, H, torch.rand(R, C, generator=generator) < 0.5


@pytest.mark.parametrize("kind", ["power law", "few tokens"])
def test_the_default_tolerance_is_kept_on_wide_ill_conditioned_layers(kind: str, spec: Make) -> None:
    V, H, keep = wide(kind)
    settings = spec("layer")
    found = solve_masked(
        V * keep, V @ H, H, keep, tolerance=settings.tolerance, iterations=settings.iterations, name="fc2"
    )

    def losses(X: Tensor) -> Tensor:
        return (((X - V) @ H) * (X - V)).sum(1)

    best = losses(direct(V, H, keep))
    assert bool((losses(found.X) <= (1 + 1e-4) * best).all())
    gap = float(losses(found.X).sum() / best.sum() - 1)
    assert 0 < gap <= found.gap <= settings.tolerance == 1e-4
    assert found.iterations < settings.iterations
    # with another target than V the bound holds as well: what no weights can reach is left out of the objective
    B = (V + 0.3 * torch.randn(V.shape, generator=torch.Generator().manual_seed(1), dtype=V.dtype)) @ H
    other = solve_masked(V * keep, B, H, keep, tolerance=1e-4, iterations=1000, name="fc2")
    assert other.gap <= 1e-4


def test_a_solver_cut_short_says_how_far_it_is(spec: Make) -> None:
    V, H, keep = wide("power law")
    cut = solve_masked(V * keep, V @ H, H, keep, tolerance=1e-4, iterations=40, name="fc2")
    best = direct(V, H, keep)
    loss = [float((((X - V) @ H) * (X - V)).sum()) for X in (cut.X, best)]
    assert cut.iterations == 40
    assert cut.gap >= loss[0] / loss[1] - 1 > 1e-4


def test_a_solved_start_keeps_its_bits_and_descent_gets_there_too() -> None:
    V, H, keep = problem()
    full = torch.ones_like(keep)
    found = solve_masked(V, V @ H, H, full, tolerance=1e-6, iterations=50, name="x")
    assert found.iterations == 0
    assert torch.equal(found.X, V)
    best = direct(V, H, keep)
    slow = descend_masked(V * keep, V @ H, H, keep, learning_rate=0.05, iterations=1500, name="x")
    assert not bool(slow.X[~keep].any())

    def loss(X: Tensor) -> float:
        return float((((X - V) @ H) * (X - V)).sum())

    assert loss(best) <= loss(slow.X) < 1.01 * loss(best) < loss(V * keep)


def test_a_singular_gram_matrix_is_named() -> None:
    V, H, keep = problem()
    with pytest.raises(ModelError, match=r"fc1.*reconstruction\.damping"):
        solve_masked(V, V @ H, torch.zeros_like(H), keep, tolerance=1e-6, iterations=9, name="fc1")


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_layer_repair_equals_direct_solves_on_the_layers_inputs(
    family: str, tokens: Tensor, spec: Make, pruned: Make
) -> None:
    state = pruned(family, tokens)
    dense = random_decoder(family)
    members, caught = groups(dense, 0), {}

    def take(at: int) -> Callable[[Tensor], None]:
        return lambda x: caught.setdefault(at, []).append(x.reshape(-1, x.shape[-1]).double())

    with catch_inputs(members, [take(i) for i in range(len(members))]), torch.no_grad():
        dense.model(input_ids=tokens, use_cache=False)
    decoder = random_decoder(family)
    found = reconstruct(
        decoder, state, tokens, spec("layer", damping=0.01, tolerance=1e-10), seed=0, batch_size=2
    )
    for i, group in enumerate(members):
        x = torch.cat(caught[i])
        for site in group:
            bias = site.linear.bias is not None
            V, keep = site.linear.weight.double(), state.site(site.name).mask.keep()
            own = torch.cat([x, torch.ones(len(x), 1)], 1) if bias else x
            if bias:
                V = torch.cat([V, site.linear.bias.double()[:, None]], 1)
                keep = torch.cat([keep, torch.ones_like(keep[:, :1])], 1)
            H = own.T @ own / len(own)
            H += 0.01 * H.diagonal()[: site.linear.in_features].mean() * torch.eye(H.shape[0])
            best, repaired = direct(V, H, keep), found.site(site.name)
            torch.testing.assert_close(
                repaired.weight.double(), best[:, : site.linear.in_features], rtol=2e-3, atol=2e-4
            )
            if bias:
                assert repaired.bias is not None
                torch.testing.assert_close(repaired.bias.double(), best[:, -1], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("target", ["local", "global"])
@pytest.mark.parametrize("solver", ["exact", "gradient"])
def test_layer_repair_lowers_the_error_whatever_target_and_solver(
    target: str, solver: str, tokens: Tensor, spec: Make, pruned: Make
) -> None:
    rows: list[dict[str, Any]] = []
    text = torch.randint(3, 64, (24, 20), generator=torch.Generator().manual_seed(1))
    reconstruct(
        random_decoder("llama"), pruned("llama", text), text,
        spec("layer", target=target, solver=solver, learning_rate=0.01), seed=0, batch_size=8,
        on_block=lambda report, _: rows.extend(report.blocks),
    )  # fmt: skip
    assert all(row["error"] < row["error_before"] for row in rows)


def toy(n: int = 64, R: int = 6, C: int = 12) -> tuple[nn.Linear, Elementwise, Tensor, Tensor]:
    """One linear layer as a block: inputs (n, 5, C) and the dense outputs."""
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(C, C, generator=generator)
    x = torch.randn(n, 5, C, generator=generator) @ mixing * 0.3
    linear = nn.Linear(C, R, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.randn(R, C, generator=generator))
    y = linear(x)
    mask = Elementwise(torch.rand(R, C, generator=generator) < 0.5)
    linear.weight.mul_(mask.keep_weight)
    return linear, mask, x, y


def masked(linear: nn.Linear, mask: Elementwise) -> list[Trained]:
    return [Trained(linear, "weight", mask.keep_weight)]


def test_a_linear_block_trained_by_gradient_reaches_masked_least_squares(spec: Make) -> None:
    linear, mask, x, y = toy()
    X, Y = x.flatten(0, 1).double(), y.flatten(0, 1).double()
    H = X.T @ X
    best = torch.zeros(linear.weight.shape, dtype=torch.float64)
    for r in range(best.shape[0]):
        kept = mask.keep_weight[r].nonzero()[:, 0]
        best[r, kept] = torch.linalg.solve(H[kept][:, kept], X[:, kept].T @ Y[:, r])
    optimum = float((X @ best.T - Y).square().mean())
    settings = spec("block", epochs=150, batch=8, learning_rate=0.02)
    before = float(mean_square(linear(x), y))
    updates, first = fit(
        masked(linear, mask),
        lambda rows: mean_square(linear(x[rows]), y[rows]),
        64,
        settings,
        torch.Generator(),
    )
    after = float(mean_square(linear(x), y))
    assert updates == 150 * 8
    assert after < first < before
    assert optimum * (1 - 1e-4) <= after < 1.01 * optimum < before
    assert not bool(linear.weight[~mask.keep_weight].any())


@pytest.mark.parametrize(("n", "batch", "updates"), [(20, 8, 6), (16, 8, 6), (5, 8, 3), (7, 3, 6)])
def test_updates_are_epochs_times_whole_batches(n: int, batch: int, updates: int, spec: Make) -> None:
    linear, mask, x, y = toy()
    sizes: list[int] = []

    def loss(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return mean_square(linear(x[rows]), y[rows])

    assert (
        fit(masked(linear, mask), loss, n, spec("block", epochs=3, batch=batch), torch.Generator())[0]
        == updates
    )
    assert sizes == [min(batch, n)] * updates


def test_every_update_is_made_at_its_rate(spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    linear, mask, x, y = toy()
    settings, seen, step = spec("block", epochs=3, batch=8, learning_rate=0.1), [], torch.optim.AdamW.step

    def look(self: torch.optim.AdamW, *args: Any) -> Any:
        seen.extend(group["lr"] for group in self.param_groups)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", look)
    fit(
        masked(linear, mask),
        lambda rows: mean_square(linear(x[rows]), y[rows]),
        20,
        settings,
        torch.Generator(),
    )
    assert seen == pytest.approx([0.1 * (1 - update / 6) for update in range(6)])


@pytest.mark.parametrize(
    ("losses", "epochs", "best"),
    [
        ([9, 5, 3, 4, 3, 8, 1], 4, 2),  # two epochs without a lower loss end it; an equal one is not lower
        ([9, 5, 6, 4, 7, 3, 2], 6, 6),  # never two in a row: to the end
        ([1, 2, 3], 2, 0),  # never better than before training
    ],
)
def test_the_weights_of_the_lowest_stopping_loss_return(
    losses: list[float], epochs: int, best: int, spec: Make
) -> None:
    linear, mask, x, y = toy()
    settings = spec("block", epochs=6, batch=8, learning_rate=0.01, patience=2)
    seen: list[Tensor] = []
    told = iter(losses)

    def stop() -> float:
        with torch.no_grad():  # the layer computes with its parameters while it is trained
            seen.append(linear(torch.eye(linear.in_features)))
        return next(told)

    def loss(rows: Tensor) -> Tensor:
        return mean_square(linear(x[rows]), y[rows])

    done, _ = fit(masked(linear, mask), loss, 16, settings, torch.Generator(), stop)
    assert done == epochs * 2
    assert torch.equal(linear(torch.eye(linear.in_features)), seen[best])
    assert len({tuple(weights.flatten().tolist()) for weights in seen}) == len(seen) == epochs + 1


def test_the_loss_cannot_overflow_where_half_precision_would() -> None:
    high = torch.full((2, 2), 6e4, dtype=torch.float16)
    assert float(mean_square(high, -high)) == pytest.approx((2 * 59_980) ** 2, rel=1e-2)
    big = torch.full((2, 2), 1e18, dtype=torch.bfloat16)
    assert torch.isfinite(mean_square(big, -big))


@pytest.mark.parametrize(
    ("epochs", "least", "updates"),
    [(3, 0, 6), (3, 6, 6), (3, 7, 8), (3, 160, 160), (0, 160, 0)],
)
def test_few_sequences_are_trained_on_for_more_epochs(
    epochs: int, least: int, updates: int, spec: Make
) -> None:
    linear, mask, x, y = toy()
    settings = spec("block", epochs=epochs, min_updates=least, batch=8)

    def loss(rows: Tensor) -> Tensor:
        return mean_square(linear(x[rows]), y[rows])

    assert fit(masked(linear, mask), loss, 20, settings, torch.Generator())[0] == updates


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(spec: Make) -> None:
    settings, weights = spec("block", epochs=5, batch=8), list[Tensor]()
    for together in (None, 8, 3):
        linear, mask, x, y = toy()
        linear, x, y = linear.double(), x.double(), y.double()

        def loss(rows: Tensor, linear: nn.Linear = linear, x: Tensor = x, y: Tensor = y) -> Tensor:
            return mean_square(linear(x[rows]), y[rows])

        done, first = fit(
            masked(linear, mask), loss, 20, settings, torch.Generator().manual_seed(0), together=together
        )
        assert done == 10
        assert first > 0
        weights.append(linear.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.allclose(weights[0], weights[2], rtol=1e-4, atol=1e-6)


def test_gains_are_trained_beside_masked_weights_and_only_they_move_what_the_mask_removes(spec: Make) -> None:
    linear, mask, x, _ = toy()
    norm = nn.LayerNorm(linear.in_features).requires_grad_(False).to(torch.bfloat16)
    linear.to(torch.bfloat16)
    x = x.bfloat16()
    y = 1.5 * linear(norm(x)) + 0.5

    def loss(rows: Tensor) -> Tensor:
        return mean_square(linear(norm(x[rows])), y[rows])

    trained = [*masked(linear, mask), Trained(norm, "weight", None), Trained(norm, "bias", None)]
    held = [linear.weight, norm.weight, norm.bias]
    before = [parameter.clone() for parameter in held]
    fit(trained, loss, 64, spec("block", epochs=10, learning_rate=0.01), torch.Generator())
    assert [linear.weight, norm.weight, norm.bias] == held  # the same objects, back in place
    assert not any(torch.equal(now, then) for now, then in zip(held, before, strict=True))
    assert {parameter.dtype for parameter in held} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in held)
    assert not bool(linear.weight[~mask.keep_weight].any())


def test_clipping_limits_the_norm_of_all_gradients_together(spec: Make) -> None:
    """scaled_norm: 1000 on gradients times 65536, as GradScaler starts, and twice that after 2000 updates."""
    for clipping, update, limit in (
        ("none", 0, None), ("norm", 0, 2.0), ("norm", 5000, 2.0),
        ("scaled_norm", 0, 2 / 65536), ("scaled_norm", 1999, 2 / 65536), ("scaled_norm", 2000, 2 / 131072),
    ):  # fmt: skip
        parameters = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
        for parameter in parameters:
            parameter.grad = torch.full((3,), 5.0)
        fitting.clip(parameters, spec("block", clipping=clipping, max_norm=2.0), update)
        norm = float(torch.cat([p.grad for p in parameters if p.grad is not None]).norm())
        assert norm == pytest.approx(limit or 5 * 6**0.5, rel=1e-4)


@pytest.mark.parametrize("clipping", ["norm", "scaled_norm"])
def test_clipping_changes_what_is_learnt(clipping: str, spec: Make) -> None:
    weights = []
    for name in ("none", clipping):
        linear, mask, x, y = toy()
        settings = spec("block", epochs=3, clipping=name, max_norm=1e-2)
        fit(
            masked(linear, mask), lambda rows, f=linear, x=x, y=y: mean_square(f(x[rows]), y[rows]), 64,
            settings, torch.Generator(),
        )  # fmt: skip
        weights.append(linear.weight)
    assert not torch.equal(*weights)
