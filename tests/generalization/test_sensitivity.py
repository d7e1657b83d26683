"""Sensitivity and modules: against brute force, and the facts that hold for any scores. arXiv:2603.13418."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.generalization.module import Partition, features, means, partition
from prunelab.generalization.reliability import (
    module_percentiles,
    module_scores,
    rank_consistency,
    unreliable,
)
from prunelab.generalization.sensitivity import Sensitivity, dead, joined, measure, percentile_ranks

KMEANS = Partition("kmeans", 4, 0.05, 4)
GRID = Partition("grid", 4, 0.05, 4)
THRESHOLD = Partition("threshold", 4, 0.05, 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(seed: int, m: int = 400, D: int = 4) -> tuple[Tensor, Tensor]:
    """Scores of units of which a quarter depends on the dataset, and which ones do."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(m, generator=generator, dtype=torch.float64)
    noise = 0.05 * torch.randn(D, m, generator=generator, dtype=torch.float64)
    own = 1.5 * torch.randn(D, m, generator=generator, dtype=torch.float64)
    sensitive = torch.arange(m) < m // 4
    return torch.exp(base + noise + own * sensitive), sensitive


def test_percentile_ranks_count_those_below_and_half_of_those_equal() -> None:
    scores = torch.randint(0, 5, (3, 13), generator=torch.Generator().manual_seed(1)).double()
    for row, found in zip(scores.tolist(), percentile_ranks(scores).tolist(), strict=True):
        for x, rank in zip(row, found, strict=True):
            below, equal = sum(y < x for y in row), sum(y == x for y in row)
            assert rank == pytest.approx((below + (equal - 1) / 2) / 12, abs=1e-15)
    assert percentile_ranks(torch.ones(2, 1)).tolist() == [[0.5], [0.5]]
    with pytest.raises(ModelError, match="NaN"):
        percentile_ranks(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("kind", ["rank_std", "rank_range", "cv"])
def test_one_dataset_given_several_times_moves_nothing(kind: str) -> None:
    found = measure(random(1, 57).repeat(3, 1), kind=kind)
    assert torch.equal(found.v, torch.zeros(57, dtype=torch.float64))
    labels = partition(found, KMEANS)
    assert sorted(set(labels.tolist())) == [
        0,
        1,
        2,
        3,
    ]  # by magnitude: of any two modules one lies above the other
    spans = [(found.u[labels == j].min(), found.u[labels == j].max()) for j in range(4)]
    assert all(a[1] < b[0] or b[1] < a[0] for a, b in itertools.combinations(spans, 2))
    for rule in ("sens_and_mag", "rank_consistency"):
        assert not unreliable(found, labels, rule=rule).any()


def test_rank_std_is_bounded_and_sees_order_alone() -> None:
    S = random(4, 60)
    found = measure(S)
    assert 0 <= float(found.v.min()) <= float(found.v.max()) <= 0.5
    assert float(measure(torch.stack([S[0], 1 - S[0]])).v.max()) == 0.5
    brute = torch.tensor([torch.std(found.ranks[:, i], correction=0) for i in range(60)])
    torch.testing.assert_close(found.v, brute.double())
    moved = torch.stack([S[0], torch.exp(3 * S[1]), S[2] ** 3, 7 + S[3]])
    assert torch.equal(measure(moved).v, found.v)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(measure(S[:, order]).v, found.v[order])
    shuffled = measure(S[[0, 3, 1, 2]])
    torch.testing.assert_close(shuffled.v, found.v)
    assert torch.equal(shuffled.a, found.a)
    assert torch.equal(partition(shuffled, KMEANS), partition(found, KMEANS))
    assert torch.equal(partition(measure(S[:, order]), KMEANS), partition(found, KMEANS)[order])


def test_the_other_kinds_against_their_definitions() -> None:
    S = random(3, 21)
    ranks = percentile_ranks(S)
    assert torch.equal(measure(S, kind="rank_range").v, ranks.max(0).values - ranks.min(0).values)
    relative = S / S.mean(1, keepdim=True)
    torch.testing.assert_close(measure(S, kind="cv").v, relative.std(0, correction=0) / relative.mean(0))
    torch.testing.assert_close(
        measure(S * torch.tensor([[1.0], [5.0], [0.1]]), kind="cv").v, measure(S, kind="cv").v
    )
    with pytest.raises(ConfigError, match="rank_std"):
        measure(S, kind="rank_variance")


def test_halves_take_the_noise_of_sampling_off() -> None:
    m, D = 500, 4
    generator = torch.Generator().manual_seed(3)
    truth = random(m, seed=4)
    halves = truth + 0.05 * torch.randn(2, D, m, generator=generator, dtype=torch.float64)
    S = halves.mean(0)
    plain, corrected = measure(S), measure(S, halves=halves)
    A, B = percentile_ranks(halves[0]), percentile_ranks(halves[1])
    squares = plain.v**2 - ((A - B) ** 2).mean(0) / 4
    torch.testing.assert_close(corrected.v, squares.clamp(min=0).sqrt())
    assert float((corrected.v**2).mean()) < 0.45 * float((plain.v**2).mean())
    assert torch.equal(measure(S, halves=torch.stack([S, S])).v, plain.v)
    squares = measure(S, kind="rank_range").v ** 2 - ((A - B) ** 2).mean(0) / 4
    torch.testing.assert_close(measure(S, kind="rank_range", halves=halves).v, squares.clamp(min=0).sqrt())
    relative = halves / halves.mean(-1, keepdim=True)
    whole = S / S.mean(-1, keepdim=True)
    squares = whole.var(0, correction=0) - ((relative[0] - relative[1]) ** 2).mean(0) / 4
    expected = squares.clamp(min=0).sqrt() / whole.mean(0)
    torch.testing.assert_close(measure(S, kind="cv", halves=halves).v, expected)


def test_planted_units_are_found() -> None:
    for seed in range(3):
        S, sensitive = planted(seed)
        found = measure(S)
        assert float(found.v[~sensitive].mean()) < 0.06
        assert 0.2 < float(found.v[sensitive].mean()) < 0.35
        labels = partition(found, Partition("kmeans", 2, 0.05, 4, (1.0, 0.0, 0.0)))
        assert float((labels.bool() == sensitive).double().mean()) > 0.85


@pytest.mark.parametrize("how", [KMEANS, GRID, THRESHOLD], ids=lambda how: how.kind)
@pytest.mark.parametrize("m", [1, 7, 8, 30, 300])
def test_modules_divide_the_units(how: Partition, m: int) -> None:
    found = measure(planted(5, m)[0])
    labels = partition(found, how)
    counts = torch.bincount(labels)
    assert labels.shape == (m,)
    assert int(counts.sum()) == m
    assert len(counts) == 1 if m < 8 else int(counts.min()) >= max(4, -(-m // 20))
    assert torch.equal(labels, partition(found, how))
    V = means(found.v, labels)
    assert bool((V[1:] >= V[:-1]).all())
    torch.testing.assert_close(V, torch.stack([found.v[labels == j].mean() for j in range(len(V))]))


def test_grid_and_threshold_cut_at_quantiles() -> None:
    found = measure(random(4, 40))
    high = found.v > torch.quantile(found.v, 0.5)
    strong = found.a > torch.quantile(found.a, 0.5)
    labels = partition(found, Partition("grid", 1, 0.0, 1))
    cells = {(bool(high[i]), bool(strong[i])): int(labels[i]) for i in range(40)}
    assert len(set(cells.values())) == len(cells) == 4
    assert all(int(labels[i]) == cells[bool(high[i]), bool(strong[i])] for i in range(40))
    over = partition(found, THRESHOLD)
    assert torch.equal(over.bool(), found.v > torch.quantile(found.v, 0.6))


def test_small_modules_join_the_nearest() -> None:
    ranks = torch.cat([torch.full((20,), 0.1), torch.full((2,), 0.5), torch.full((20,), 0.9)]).double()
    found = Sensitivity(ranks.repeat(2, 1), torch.cat([torch.zeros(20), torch.full((22,), 0.4)]).double())
    labels = partition(found, Partition("kmeans", 3, 0.0, 3, (1.0, 1.0, 0.0)))
    assert labels.tolist() == [0] * 20 + [1] * 22


def test_kmeans_ends_where_no_unit_is_nearer_to_another_centre() -> None:
    found = measure(planted(6)[0])
    labels, points = partition(found, Partition("kmeans", 3, 0.0, 1)), features(found)
    centres = torch.stack([points[labels == j].mean(0) for j in range(3)])
    torch.testing.assert_close(torch.cdist(points, centres).argmin(1), labels)


def test_features_that_are_constant_count_nothing() -> None:
    found = measure(random(1, 30).repeat(3, 1))
    points = features(found)
    assert points.shape == (30, 5)
    assert torch.equal(points[:, 0], torch.zeros(30, dtype=torch.float64))
    assert torch.equal(points[:, 2:], torch.zeros(30, 3, dtype=torch.float64))
    assert float(points[:, 1].std(correction=0)) == pytest.approx(1)


def test_a_module_is_unreliable_if_sensitive_and_weak() -> None:
    S, _ = planted(7)
    found = measure(S)
    labels = partition(found, Partition("grid", 1, 0.0, 1))
    V, A, limit = means(found.v, labels), means(found.a, labels), float(torch.quantile(found.v, 0.6))
    expected = [bool(v > limit and a < 0.4) for v, a in zip(V, A, strict=True)]
    assert unreliable(found, labels).tolist() == expected
    assert sum(expected) == 1
    assert not unreliable(found, labels, rule="none").any()
    assert unreliable(found, labels, rule="all").all()
    with pytest.raises(ConfigError, match="rank_consistency"):
        unreliable(found, labels, rule="rank")


def test_rank_consistency_is_the_mean_spearman_correlation() -> None:
    S = random(3, 11, seed=8)
    ranks = percentile_ranks(S)
    pairs = [torch.corrcoef(ranks[[a, b]])[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert rank_consistency(S) == pytest.approx(float(sum(pairs)) / 3)
    assert rank_consistency(S[:1]) == rank_consistency(S[:, :1]) == 1
    assert rank_consistency(torch.stack([S[0], torch.ones(11)])) == 0
    found = measure(torch.cat([torch.stack([S[0], S[0]]), torch.stack([S[1], -S[1]]) + 2], 1))
    labels = torch.tensor([0] * 11 + [1] * 11)
    assert unreliable(found, labels, rule="rank_consistency").tolist() == [False, True]


def test_only_switched_modules_leave_the_activations() -> None:
    labels, switched = torch.tensor([0, 1, 0, 1, 2]), torch.tensor([False, True, False])
    weights = random(5, seed=9)
    one, other = (module_scores(random(5, seed=s), weights, labels, switched) for s in (10, 11))
    assert torch.equal(one[switched[labels]], other[switched[labels]])
    assert not torch.equal(one[~switched[labels]], other[~switched[labels]])


def test_percentiles_inside_modules() -> None:
    scores, labels = torch.tensor([3.0, 1.0, 3.0, 5.0, 0.0]), torch.tensor([0, 0, 0, 1, 1])
    assert module_percentiles(scores, labels).tolist() == pytest.approx([0.5, 1 / 6, 5 / 6, 0.75, 0.25])


def test_dead_units_score_nothing_anywhere() -> None:
    assert dead(torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])).tolist() == [True, False, False]


def test_layers_are_joined_with_percentiles_of_their_own() -> None:
    one, other = measure(random(2, 5)), measure(100 * random(2, 5))
    both = joined([one, other])
    assert torch.equal(both.ranks[:, :5], both.ranks[:, 5:])
    assert both.v.shape == both.a.shape == (10,)
