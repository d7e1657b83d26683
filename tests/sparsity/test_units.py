"""Which units go: budgets, equal shares, rankings, ties, earlier shots; and the parameter counts of published runs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from prunelab.errors import ConfigError, ModelError
from prunelab.pattern.units import Units
from prunelab.sparsity.units import Population, Total, equal_shares, select

SIZES = {"heads": (4, 100), "neurons": (30, 7)}  # units per block, parameters of one


def populations(blocks: int = 3, closed: tuple[int, ...] = ()) -> list[Population]:
    return [
        Population(f"{kind} of block {block}", kind, cost, torch.zeros(count, dtype=torch.bool), block not in closed)
        for block in range(blocks)
        for kind, (count, cost) in SIZES.items()
    ]  # fmt: skip


def total(blocks: int = 3) -> Total:
    decoder = blocks * sum(count * cost for count, cost in SIZES.values())
    return Total(decoder, decoder + 100)


def scores(parts: list[Population], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {one.name: torch.rand(one.count, generator=generator, dtype=torch.float64) for one in parts}


def removed(parts: list[Population], keep: dict[str, torch.Tensor]) -> int:
    return sum(int((~keep[one.name]).sum()) * one.cost for one in parts)


@pytest.mark.parametrize("counts", ["decoder", "model"])
@pytest.mark.parametrize("allocation", ["uniform", "global", "by_kind"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.6])
def test_the_budget_of_parameters_is_met_to_one_unit(counts: str, allocation: str, ratio: float) -> None:
    parts, pattern = populations(), Units(counts=counts)  # type: ignore[arg-type]
    keep = select(parts, scores(parts), ratio, allocation, pattern, total())
    wanted = ratio * (total().decoder if counts == "decoder" else total().model)
    assert abs(removed(parts, keep) - wanted) <= 100
    if allocation == "uniform":
        assert abs(removed(parts, keep) - wanted) <= 7 / 2 + 1e-9


def test_a_ranking_removes_the_prefix_that_comes_closest() -> None:
    parts, pattern = populations(), Units()
    importance = scores(parts)
    for ratio in (0.13, 0.31, 0.47):
        keep = select(parts, importance, ratio, "global", pattern, total())
        ranked = sorted(
            (float(importance[one.name][i]), one.cost, one.name, i) for one in parts for i in range(one.count)
        )
        least = {
            one.name: int(importance[one.name].argmax()) for one in parts
        }  # min_units: one stays in each
        open_ = [entry for entry in ranked if least[entry[2]] != entry[3]]
        sums = [0, *itertools.accumulate(cost for _, cost, _, _ in open_)]
        length = min(range(len(sums)), key=lambda n: abs(sums[n] - ratio * total().decoder))
        gone = {(name, i) for _, _, name, i in open_[:length]}
        assert gone == {(n, int(i)) for n, mask in keep.items() for i in (~mask).nonzero()[:, 0]}


def test_equal_shares_of_units_are_equal_counts_and_round_down_or_up() -> None:
    parts = populations(closed=(1,))
    for rounding, heads, neurons in (("exact", 1, 9), ("published", 2, 9)):
        pattern = Units(counts="units", rounding=rounding)  # type: ignore[arg-type]
        counts = equal_shares(parts, 0.3, pattern, total())
        assert [counts[f"heads of block {b}"] for b in range(3)] == [heads, 0, heads]
        assert [counts[f"neurons of block {b}"] for b in range(3)] == [neurons, 0, neurons]


@pytest.mark.parametrize(("count", "lines"), [(32, 128), (8, 128), (10, 6), (11008, 1), (30, 1)])
def test_published_counts_are_those_of_the_papers_code(count: int, lines: int) -> None:
    """In integers: n_pruned = channels - int(channels * (1 - ratio)), and n_pruned // width of whole heads."""
    one = Population("x", "heads", 5, torch.zeros(count, dtype=torch.bool), lines=lines)
    pattern = Units(counts="units", rounding="published")
    for percent in range(0, 95, 5):
        channels = count * lines
        n_pruned = channels - channels * (100 - percent) // 100
        found = equal_shares([one], percent / 100, pattern, Total(1, 1))
        assert found == {"x": n_pruned // lines}, percent
    if (count, lines) == (32, 128):
        assert equal_shares([one], 0.2, pattern, Total(1, 1)) == {"x": 6}


def test_a_fixed_share_of_heads_leaves_the_rest_to_neurons() -> None:
    parts, pattern = populations(), Units(head_ratio=0.5)
    keep = select(parts, scores(parts), 0.4, "by_kind", pattern, total())
    heads = sum(int((~keep[one.name]).sum()) for one in parts if one.kind == "heads")
    assert heads == 6
    assert abs(removed(parts, keep) - 0.4 * total().decoder) <= 7


def test_what_an_earlier_shot_removed_stays_removed_and_counts() -> None:
    parts, pattern = populations(), Units()
    importance = scores(parts)
    first = select(parts, importance, 0.2, "global", pattern, total())
    later = [Population(one.name, one.kind, one.cost, ~first[one.name]) for one in parts]
    other = scores(parts, seed=1)
    second = select(later, other, 0.35, "global", pattern, total())
    assert all(bool((~second[name])[~mask].all()) for name, mask in first.items())
    assert abs(removed(parts, second) - 0.35 * total().decoder) <= 100


def test_ties_fall_to_the_earlier_block_and_index_and_some_units_always_stay() -> None:
    parts, pattern = populations(2), Units(min_units=2)
    flat = {one.name: torch.zeros(one.count, dtype=torch.float64) for one in parts}
    keep = select(parts, flat, 0.3, "global", pattern, total(2))
    assert not keep["heads of block 0"][:2].any()
    assert keep["heads of block 0"][2:].all()
    assert keep["neurons of block 1"].all()


def test_what_cannot_be_is_named() -> None:
    parts = populations()
    with pytest.raises(ConfigError, match=r"sparsity\.ratio.*min_units"):
        select(parts, scores(parts), 0.99, "global", Units(min_units=3), total())
    with pytest.raises(ConfigError, match="by_kind"):
        select(parts, scores(parts), 0.5, "owl", Units(), total())
    bad = scores(parts) | {"heads of block 1": torch.full((4,), torch.nan)}
    with pytest.raises(ModelError, match="heads of block 1"):
        select(parts, bad, 0.5, "global", Units(), total())


@pytest.mark.parametrize("counts", ["units", "decoder"])
@pytest.mark.parametrize("allocation", ["uniform", "global", "by_kind"])
@pytest.mark.parametrize("n", [4, 8, 10])
def test_neurons_stay_by_multiples_and_the_least_important_go(counts: str, allocation: str, n: int) -> None:
    """30 neurons: a block keeps all, or a multiple of n; no other choice is nearer to the budget than half a multiple."""
    parts, importance = populations(4, closed=(1,)), scores(populations(4))
    for ratio in (0.0, 0.07, 0.15, 0.3):
        plain = Units(counts=counts)  # type: ignore[arg-type]
        free = select(parts, importance, ratio, allocation, plain, total(4))
        keep = select(parts, importance, ratio, allocation, replace(plain, round_to=n), total(4))
        for one in parts:
            gone = ~keep[one.name]
            if one.kind == "heads":
                assert torch.equal(keep[one.name], free[one.name])
                continue
            left = int(keep[one.name].sum())
            assert left == 30 or (left % n == 0 and left > 0 and one.open)
            if left < 30:
                assert importance[one.name][gone].max() < importance[one.name][~gone].min()
        neurons = [one for one in parts if one.kind == "neurons"]
        assert abs(removed(neurons, keep) - removed(neurons, free)) <= 7 * n / 2
    first = select(parts, importance, 0.2, allocation, replace(plain, round_to=n), total(4))
    later = [replace(one, gone=~first[one.name]) for one in parts]
    second = select(later, scores(parts, 1), 0.3, allocation, replace(plain, round_to=n), total(4))
    assert all(bool((~second[name])[~mask].all()) for name, mask in first.items())
    assert {int(second[one.name].sum()) % n for one in neurons if int(second[one.name].sum()) < 30} <= {0}


def test_what_multiples_cannot_give_is_named() -> None:
    parts = populations(2)
    with pytest.raises(ConfigError, match=r"sparsity\.ratio.*can go"):
        select(parts, scores(parts), 0.9, "by_kind", Units(round_to=16), total(2))


def test_as_many_blocks_stay_as_have_to_and_the_protected_are_among_them() -> None:
    importance = [0.3, 0.1, 0.9, 0.2, 0.5]
    for closed, stay, left in (((), 1, [2]), ((), 3, [0, 2, 4]), ((1,), 1, [1]), ((1, 3), 3, [1, 2, 3])):
        parts = [
            Population(
                f"blocks of block {b}", "blocks", 10, torch.zeros(1, dtype=torch.bool), b not in closed
            )
            for b in range(5)
        ]
        prices = {one.name: torch.tensor([importance[b]]).double() for b, one in enumerate(parts)}
        pattern = Units(kinds=("blocks",), counts="decoder", min_units=stay)
        keep = select(parts, prices, (5 - len(left)) / 5, "global", pattern, Total(50, 60))
        assert [b for b, one in enumerate(parts) if bool(keep[one.name])] == left
        with pytest.raises(ConfigError, match=r"can go"):
            select(parts, prices, 0.999, "global", Units(kinds=("blocks",), min_units=3), Total(50, 60))
