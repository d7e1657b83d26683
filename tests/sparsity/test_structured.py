"""Choosing rows and columns: exact counts, never above the target, deterministic."""

from __future__ import annotations

import itertools

import pytest
import torch

from prunelab.errors import ConfigError, ModelError
from prunelab.sparsity.structured import SiteCosts, select


def site(
    rows: list[float], columns: list[float], name: str = "s", gone_rows=(), gone_columns=()
) -> SiteCosts:
    masks = [torch.zeros(len(rows), dtype=torch.bool), torch.zeros(len(columns), dtype=torch.bool)]
    masks[0][list(gone_rows)] = True
    masks[1][list(gone_columns)] = True
    return SiteCosts(name, torch.tensor(rows).double(), torch.tensor(columns).double(), *masks)


def random_sites(seed: int, shapes=((5, 4), (3, 7), (6, 2)), levels: int | None = None) -> list[SiteCosts]:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[float]:
        if levels is None:
            return torch.rand(n, generator=generator).tolist()
        return torch.randint(levels, (n,), generator=generator).tolist()

    return [site(draw(r), draw(c), f"s{i}") for i, (r, c) in enumerate(shapes)]


def zeros(keep: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    return sum(int((~(rows[:, None] & columns[None, :])).sum()) for rows, columns in keep)


@pytest.mark.parametrize("seed", range(5))
def test_distinct_costs_equal_the_brute_force_threshold(seed: int) -> None:
    sites = random_sites(seed)
    total = sum(s.total for s in sites)
    costs = sorted(torch.cat([torch.cat([s.rows, s.columns]) for s in sites]).tolist())
    for target in torch.linspace(0, 1, 41).tolist():
        best = 0
        for threshold in [-1.0, *costs]:
            keep = [(s.rows > threshold, s.columns > threshold) for s in sites]
            if zeros(keep) <= target * total + 1e-6:
                best = max(best, zeros(keep))
        chosen = select(sites, target)
        assert zeros(chosen.keep) == chosen.removed == best
        assert all(
            torch.equal(rows, s.rows > chosen.threshold)
            and torch.equal(columns, s.columns > chosen.threshold)
            for (rows, columns), s in zip(chosen.keep, sites, strict=True)
            if chosen.removed
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [1, 3, None])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_never_above_the_target_and_within_one_structure(seed: int, levels: int | None, scope: str) -> None:
    sites = random_sites(seed, levels=levels)
    total = sum(s.total for s in sites)
    slack = 7 if scope == "global" else 6 + 7 + 6
    for target in torch.linspace(0, 1, 41).tolist():
        chosen = select(sites, target, scope)
        assert zeros(chosen.keep) == chosen.removed
        assert target * total + 1e-6 >= chosen.removed > target * total - slack


def test_uniform_scope_meets_the_target_in_every_site() -> None:
    sites = random_sites(1, shapes=((20, 30), (40, 10)))
    sites[1] = SiteCosts(
        "s1",
        sites[1].rows + 100,
        sites[1].columns + 100,
        *(~(x > -1) for x in (sites[1].rows, sites[1].columns)),
    )
    for (rows, columns), s in zip(select(sites, 0.5, "uniform").keep, sites, strict=True):
        assert 0.5 * s.total - 40 < zeros([(rows, columns)]) <= 0.5 * s.total
    untouched = select(sites, 0.3).keep[1]
    assert untouched[0].all()
    assert untouched[1].all()


def test_ties_fall_to_earlier_layer_then_rows_then_lower_index() -> None:
    sites = [site([1, 1], [1, 1], "a"), site([1, 1], [1, 1], "b")]
    expected = [(0, 2), (1, 4), (2, 6), (3, 8)]
    for n_full, removed in expected:
        keep = select(sites, removed / 8).keep
        rows = torch.cat([keep[0][0], keep[1][0]])
        assert (~rows).nonzero()[:, 0].tolist() == list(range(n_full + 1))
    assert select(sites, 0.25).keep[0][1].all()


def test_rounding_of_the_ratio_does_not_lose_a_structure() -> None:
    sites = [site(list(range(10)), [100.0] * 10)]
    for k, target in enumerate(itertools.accumulate([0.1] * 3), 1):
        assert select(sites, target).removed == 10 * k


def test_structures_that_are_gone_stay_gone_whatever_their_cost() -> None:
    sites = [site([9, 0, 9], [9, 9, 9], gone_rows=[0], gone_columns=[2])]
    chosen = select(sites, 0.0)
    assert (~chosen.keep[0][0]).nonzero()[:, 0].tolist() == [0]
    assert (~chosen.keep[0][1]).nonzero()[:, 0].tolist() == [2]
    assert chosen.removed == 5


def test_zero_target_and_empty_budget_remove_nothing() -> None:
    sites = [site([1, 1], [1, 1])]
    for target in (0.0, 0.1):
        chosen = select(sites, target)
        assert chosen.removed == 0
        assert chosen.threshold == 0
        assert chosen.total == 4


def test_negative_rounding_does_not_come_before_the_dead() -> None:
    chosen = select([site([0.0, -1e-12], [1.0, 1.0])], 0.5)
    assert chosen.keep[0][0].tolist() == [False, True]


def test_everything_can_go() -> None:
    assert select(random_sites(0), 1.0).removed == 5 * 4 + 3 * 7 + 6 * 2


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_bad_target_names_key_value_and_range(bad: float) -> None:
    with pytest.raises(ConfigError, match=r"target=.*0 <= ratio <= 1"):
        select(random_sites(0), bad)


def test_bad_scope_and_costs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"allocation.name='layer'.*global \| uniform"):
        select(random_sites(0), 0.1, "layer")
    with pytest.raises(ModelError, match=r"s7: a removal cost is not finite"):
        select([site([1.0, float("nan")], [1.0], "s7")], 0.1)
