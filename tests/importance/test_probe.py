"""Fits to measured losses: what made the losses is found again, and noise is not learned."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.importance.fusion import (
    Population,
    attention_weights,
    build_population,
    fuse,
    uncertainty_weight,
)
from prunelab.importance.probe import Blend, Probe, draw_probes, fit_learned, fit_uncertainty, spearman

USUAL = {"temperature": 0.5, "query_mix": 0.5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def populations(layers: int = 2, units: int = 60, p: int = 3, seed: int = 0) -> list[Population]:
    draw = seeded(seed)
    built = []
    for layer in range(layers):
        E = torch.randn(units, p, generator=draw, dtype=torch.float64).exp()
        C = E * torch.rand(units, p, generator=draw, dtype=torch.float64)
        built.append(build_population(C, E, "mean", "neurons", layer / max(layers - 1, 1)))
    return built


def probes(
    made: list[Population], change: Callable[[int, Tensor], float], n: int = 64, seed: int = 1
) -> list[Probe]:
    drawn = draw_probes(made, n, 0.05, seeded(seed))
    return [Probe(index, units, change(index, units)) for index, units in drawn]


def fit(made: list[Population], measured: list[Probe], seed: int = 2) -> Blend:
    return fit_learned(made, measured, width=8, generator=seeded(seed), **USUAL)


def disagreeing(layers: int = 2, units: int = 60, seed: int = 0) -> list[Population]:
    """Estimates that have nothing to do with each other, so that a weight shows in what the probes find."""
    draw = seeded(seed)
    made = [torch.randn(2, units, 3, generator=draw, dtype=torch.float64).exp() for _ in range(layers)]
    return [build_population(C, E, "mean", "neurons", at / (layers - 1)) for at, (C, E) in enumerate(made)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("true_weight", [0.8, 0.2])
def test_learned_finds_the_weight_that_made_the_losses(true_weight: float, seed: int) -> None:
    made = disagreeing(seed=seed)
    factors = (0.01, 0.03)

    def change(index: int, units: Tensor) -> float:
        return factors[index] * float(fuse(made[index], true_weight)[units].sum())

    blend = fit(made, probes(made, change))
    mean = float(torch.cat(blend.weights).mean())
    assert mean == pytest.approx(true_weight, abs=0.1)
    assert blend.scales == pytest.approx(factors, rel=0.2)
    assert blend.learned
    assert blend.rho_learned > blend.rho_attention
    assert all(bool(((a > 0) & (a < 1)).all()) for a in blend.weights)


@pytest.mark.parametrize("seed", range(6))
def test_noise_falls_back_to_the_fixed_attention(seed: int) -> None:
    made, draw = populations(), seeded(100 + seed)
    blend = fit(made, probes(made, lambda *_: float(torch.randn((), generator=draw)), seed=seed), seed)
    assert not blend.learned
    for one, a in zip(made, blend.weights, strict=True):
        assert torch.equal(a, attention_weights(one, **USUAL))
    assert all(scale >= 0 for scale in blend.scales)


def test_the_same_seed_gives_the_same_blend_and_the_loss_may_be_in_any_unit() -> None:
    made = populations()

    def change(index: int, units: Tensor) -> float:
        return float(fuse(made[index], 0.7)[units].sum())

    measured = probes(made, change)
    first, second = fit(made, measured), fit(made, measured)
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))
    scaled = fit(made, [Probe(one.population, one.units, 1e-4 * one.change) for one in measured])
    for a, b in zip(scaled.weights, first.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert scaled.scales == pytest.approx([1e-4 * s for s in first.scales], rel=1e-6)


def test_a_layer_that_no_probe_met_has_the_average_scale_and_a_dead_one_no_nan() -> None:
    made = [*populations(3), build_population(torch.zeros(60, 3), torch.zeros(60, 3), "mean", "neurons", 1.0)]
    measured = [
        one for one in probes(made, lambda i, u: float(made[i].fine[u].sum())) if one.population in (0, 1)
    ]
    blend = fit(made, measured)
    assert blend.scales[2] == pytest.approx(sum(blend.scales[:2]) / 2)
    assert all(bool(a.isfinite().all()) for a in blend.weights)


def test_kinds_have_maps_of_their_own() -> None:
    neurons = populations(1)[0]
    heads = build_population(*(torch.rand(20, 4, generator=seeded(s)) for s in (1, 2)), "mean", "heads")
    made = [neurons, heads]
    true = (0.9, 0.1)
    blend = fit(made, probes(made, lambda i, u: float(fuse(made[i], true[i])[u].sum()), n=128))
    assert blend.learned
    assert float(blend.weights[0].mean()) > 0.65
    assert float(blend.weights[1].mean()) < 0.35


@pytest.mark.parametrize("true_weight", [0.8, 0.3])
def test_uncertainty_finds_the_noises_that_made_the_losses(true_weight: float) -> None:
    made = populations()
    measured = probes(made, lambda i, u: (1 + i) * float(fuse(made[i], true_weight)[u].sum()))
    found = fit_uncertainty(made, measured)
    assert [uncertainty_weight(*pair) for pair in found] == pytest.approx([true_weight] * 2, abs=0.1)
    total = [1 / (2 * c**2) + 1 / (2 * f**2) for c, f in found]
    assert total[1] / total[0] == pytest.approx(2, rel=0.1)


def test_probes_remove_a_share_of_one_layer_and_differ() -> None:
    made = [*populations(), build_population(torch.ones(1, 3), torch.ones(1, 3), "mean", "neurons")]
    drawn = draw_probes(made, 40, 0.05, seeded())
    assert {index for index, _ in drawn} == {0, 1}  # of one unit nothing can be removed
    for _, units in drawn:
        assert len(units) == 3
        assert units.unique().tolist() == units.tolist()
    sums = [(float(made[i].coarse[u].sum()), float(made[i].fine[u].sum())) for i, u in drawn]
    for turn, below in ((0, True), (3, False)):  # strata: both low, both high
        group = [sums[k] for k in range(turn, 40, 4)]
        middle = sorted(f for _, f in sums)[20]
        assert sum((f < middle) == below for _, f in group) >= 9
    again = draw_probes(made, 40, 0.05, seeded())
    assert all(a == b and torch.equal(u, v) for (a, u), (b, v) in zip(drawn, again, strict=True))
    assert all(len(units) == 1 for _, units in draw_probes(made, 8, 1e-9, seeded()))
    assert all(len(units) == 59 for _, units in draw_probes(made, 8, 1.0, seeded()))
    with pytest.raises(ModelError, match="two units"):
        draw_probes(made[2:], 4, 0.5, seeded())


def test_measurements_that_cannot_be_fitted_are_refused() -> None:
    made = populations()
    good = probes(made, lambda i, u: 1.0, n=8)
    assert not fit(made, good).learned  # nothing to rank
    with pytest.raises(ModelError, match="7 probes are too few"):
        fit(made, good[:7])
    with pytest.raises(ModelError, match="probe 3 changed the loss by nan"):
        fit_uncertainty(made, [*good[:3], Probe(0, torch.tensor([1]), math.nan), *good[3:]])


def test_spearman_is_the_correlation_of_mean_ranks() -> None:
    assert spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 8, 27, 64])) == pytest.approx(1)
    assert spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([4.0, 3, 2, 1])) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert spearman(torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 3, 2, 4])) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )
    assert spearman(torch.ones(4), torch.tensor([1.0, 3, 2, 4])) == 0
