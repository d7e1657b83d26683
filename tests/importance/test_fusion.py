"""Adaptive estimation fusion on plain arrays: weights, bounds, dead units, scales, permutations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prunelab.importance.fusion import (
    NORMS,
    Population,
    attention_weights,
    build_population,
    build_populations,
    fuse,
    layer_weight,
    normalise,
    product,
    uncertainty,
    uncertainty_weight,
)
from prunelab.stats.taylor import SUMS, terms

USUAL = {"temperature": 0.5, "query_mix": 0.5}


def estimates(units: int = 12, p: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """C <= E, heavy-tailed as gradients are."""
    draw = torch.Generator().manual_seed(seed)
    E = torch.randn(units, p, generator=draw, dtype=torch.float64).exp()
    return E * torch.rand(units, p, generator=draw, dtype=torch.float64), E


def weights(C: Tensor, E: Tensor, norm: str = "mean", **options: float) -> Tensor:
    return attention_weights(build_population(C, E, norm), **{**USUAL, **options})


def test_attention_is_the_formula_written_out() -> None:
    C, E = estimates(units=4)
    tau, beta = 0.7, 0.3
    found = weights(C, E, temperature=tau, query_mix=beta).tolist()
    x_c = [[float(C[u, s] / C[:, s].mean()) for s in range(3)] for u in range(4)]
    x_f = [[float(E[u, s] / E[:, s].mean()) for s in range(3)] for u in range(4)]
    middle = [[(a + b) / 2 for a, b in zip(c, f, strict=True)] for c, f in zip(x_c, x_f, strict=True)]
    consensus = [sum(row[s] for row in middle) / 4 for s in range(3)]
    for u in range(4):
        q = [(1 - beta) * m + beta * own for m, own in zip(consensus, middle[u], strict=True)]
        z = [
            sum(a * b for a, b in zip(q, k, strict=True)) / (math.hypot(*q) * math.hypot(*k)) / tau
            for k in (x_c[u], x_f[u])
        ]
        assert found[u] == pytest.approx(math.exp(z[0]) / (math.exp(z[0]) + math.exp(z[1])), rel=1e-9)


def test_weights_are_between_0_and_1_and_half_for_equal_profiles() -> None:
    C, E = estimates()
    a = weights(C, E)
    assert bool(((a > 0) & (a < 1)).all())
    assert float(a.std()) > 0.01  # they do depend on the unit
    assert float(a.min()) > 1 / (1 + math.exp(2)) - 1e-9  # cosines of what is >= 0 differ by 1 at most
    assert weights(C, 3 * C).tolist() == pytest.approx([0.5] * 12)
    assert weights(C, E, temperature=1e9).tolist() == pytest.approx([0.5] * 12)


def test_a_constant_weight_gives_the_estimates_that_are_fused() -> None:
    """LLM-Pruner's vector, element1 and mixed, summed over members, rank the units of a layer the same."""
    draw = torch.Generator().manual_seed(0)
    w, g = (torch.randn(3, 20, 9, generator=draw, dtype=torch.float64) for _ in range(2))
    F = torch.rand(3, 20, 9, generator=draw, dtype=torch.float64)
    of = {kind: terms(w, g, F)[at].sum(2) for at, kind in enumerate(SUMS)}  # (members, units)
    C = of["signed"].abs().T
    for fine in ("element1", "mixed"):
        population = build_population(C, of[fine].T, "mean")
        for a, expected in ((1.0, C.sum(1)), (0.0, of[fine].T.sum(1))):
            assert fuse(population, a).argsort().tolist() == expected.argsort().tolist()


@pytest.mark.parametrize("norm", NORMS)
def test_fused_scores_lie_between_the_two_estimates(norm: str) -> None:
    population = build_population(*estimates(), norm)
    low = torch.minimum(population.coarse, population.fine)
    high = torch.maximum(population.coarse, population.fine)
    for a in (0.0, 0.3, 1.0, attention_weights(population, **USUAL)):
        fused = fuse(population, a)
        assert bool(((fused >= low - 1e-12) & (fused <= high + 1e-12)).all())
    between = product(population)
    assert bool(((between >= low - 1e-12) & (between <= high + 1e-12)).all())


@pytest.mark.parametrize("norm", NORMS)
def test_a_dead_unit_is_first_and_a_dead_population_is_0(norm: str) -> None:
    C, E = estimates()
    C[4] = E[4] = 0
    C[7] = E[7] = 0
    population = build_population(C, E, norm)
    for scores in (fuse(population, attention_weights(population, **USUAL)), product(population)):
        assert scores[[4, 7]].tolist() == [0, 0]
        alive = torch.ones(12, dtype=torch.bool).index_fill(0, torch.tensor([4, 7]), False)
        if norm != "rank":  # there the lowest that is alive may be 0 in one estimate
            assert bool((scores[alive] > 0).all())
    dead = build_population(torch.zeros(5, 3), torch.zeros(5, 3), norm)
    assert dead.level is None
    assert fuse(dead, attention_weights(dead, **USUAL)).tolist() == [0] * 5
    assert weights(torch.zeros(5, 3), estimates(units=5)[1], norm).isfinite().all()


def test_terms_that_cancel_do_not_make_a_unit_the_first_to_go() -> None:
    w, g = torch.tensor([[1.0, 1.0], [0.1, 0.1]]), torch.tensor([[1.0, -1.0], [0.1, 0.1]])
    of = terms(w, g, torch.zeros(2, 2)).sum(2)
    vector, element1 = of[0].abs(), of[1]
    assert (vector[0], element1[0]) == (0, 2)
    population = build_population(vector[:, None], element1[:, None], "mean")
    fused = fuse(population, attention_weights(population, **USUAL))
    assert int(vector.argmin()) == 0
    assert float(fused[0]) > 0
    assert int(fused.argmin()) == 1


def test_the_scale_of_the_loss_changes_nothing_at_first_order() -> None:
    C, E = estimates()
    for norm in NORMS:
        torch.testing.assert_close(weights(7 * C, 7 * E, norm), weights(C, E, norm))
        populations = build_population(7 * C, 7 * E, norm), build_population(C, E, norm)
        left, right = (fuse(one, attention_weights(one, **USUAL)) for one in populations)
        torch.testing.assert_close(left, right)


def test_up_and_down_may_trade_a_factor() -> None:
    """up row times c, down column over c: gradients scale inversely, so no term changes."""
    draw = torch.Generator().manual_seed(1)
    w, g = torch.randn(2, 9, generator=draw).double()
    F = torch.rand(9, generator=draw).double()
    c = 3.7
    torch.testing.assert_close(terms(w * c, g / c, F / c**2), terms(w, g, F))


@pytest.mark.parametrize("norm", NORMS)
def test_permuted_units_have_permuted_scores(norm: str) -> None:
    C, E = estimates()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    here, there = build_population(C, E, norm), build_population(C[order], E[order], norm)
    left = fuse(here, attention_weights(here, **USUAL))[order]
    torch.testing.assert_close(left, fuse(there, attention_weights(there, **USUAL)))


def test_norms() -> None:
    x = torch.tensor([0.0, 1.0, 1.0, 6.0])
    assert normalise(x, "mean").tolist() == [0, 0.5, 0.5, 3]
    assert normalise(x, "max").tolist() == pytest.approx([0, 1 / 6, 1 / 6, 1])
    assert normalise(x, "sum").tolist() == [0, 0.125, 0.125, 0.75]
    assert normalise(x, "rank").tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1])
    assert normalise(torch.tensor([3.0]), "rank").tolist() == [1]
    for norm in NORMS:
        assert normalise(torch.zeros(3), norm).tolist() == [0, 0, 0]


def test_populations_may_share_their_normaliser() -> None:
    (C1, E1), (C2, E2), (C3, E3) = estimates(6), estimates(4, seed=1), estimates(5, p=4, seed=2)
    kinds = ["neurons", "neurons", "heads"]
    shared = build_populations([(C1, E1), (10 * C2, 10 * E2), (C3, E3)], "mean", kinds, [0.0, 1.0, 0.0])
    mean = torch.cat([C1.sum(1), 10 * C2.sum(1), C3.sum(1)]).mean()
    torch.testing.assert_close(shared[1].coarse, 10 * C2.sum(1) / mean)
    torch.testing.assert_close(shared[2].coarse, C3.sum(1) / mean)
    columns = torch.cat([C1, 10 * C2]).mean(0)
    torch.testing.assert_close(shared[0].coarse_members, C1 / columns)
    torch.testing.assert_close(shared[2].fine_members, E3 / E3.mean(0))
    assert [one.depth for one in shared] == [0.0, 1.0, 0.0]
    assert shared[1].level == pytest.approx(math.log(float(10 * (C2.sum(1).mean() + E2.sum(1).mean()) / 2)))


def test_layer_weight_prefers_the_steadier_estimate() -> None:
    steady = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    shaky = torch.tensor([[1.0, 2.0, 0.0], [3.0, 6.0, 0.0]])
    cv = math.sqrt(2) / 2  # of 1 and 3, and of 2 and 6: std sqrt(2) times mean/2
    expected = 1 / (1 + math.exp(-cv / 0.5))
    assert layer_weight(steady, shaky, temperature=0.5) == pytest.approx(expected)
    assert layer_weight(shaky, steady, temperature=0.5) == pytest.approx(1 - expected)
    assert layer_weight(steady, steady, temperature=0.5) == 0.5
    assert layer_weight(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.5) == 0.5
    with pytest.raises(ValueError, match="two parts"):
        layer_weight(steady[:1], shaky[:1], temperature=0.5)


def test_uncertainty_is_the_weighting_of_multi_task_learning() -> None:
    one = Population(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]), torch.ones(2, 1), torch.ones(2, 1))
    expected = [1 / 8 + 3 / 0.5 + math.log(2 * 0.5), 2 / 8 + 1 / 0.5 + math.log(2 * 0.5)]
    assert uncertainty(one, 2.0, 0.5).tolist() == pytest.approx(expected)
    assert uncertainty_weight(2.0, 0.5) == pytest.approx((1 / 8) / (1 / 8 + 2))
    order = fuse(one, uncertainty_weight(2.0, 0.5)).argsort().tolist()
    assert order == uncertainty(one, 2.0, 0.5).argsort().tolist()
