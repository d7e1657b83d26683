"""Which units go: equal shares, one ranking, or one per kind; exact to one unit (arXiv:2312.11983, section 3.3).

A population is the units of one kind in one block; they cost the same. A budget counts units, weights of the blocks'
linear maps, or parameters of the model. Equal shares are spread by largest remainder; a ranking removes the prefix of
the cheapest whose costs come closest to the budget. Ties fall to the earlier population and the lower index; units
removed by earlier shots stay so and count. With ``round_to`` the numbers of neurons so found move to the nearest that leave
a multiple of it, more in some blocks and fewer in others, so that their cost stays within half a multiple's of what it was.
The published code keeps scores *above* a threshold, which removes more than asked where scores are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.pattern.base import BY_KIND, GLOBAL, HEADS, NEURONS, UNIFORM, WHOLE
from prunelab.pattern.units import Units

ROUNDING = 1e-6  # units; 0.3 x 10 is 2.9999999999999996 in binary and must mean 3


@dataclass(frozen=True, eq=False)
class Population:
    """``name``: of kind and block, unique. ``cost``: parameters of one unit. ``gone`` (count,) bool: removed before.
    ``open``: whether units may go; a protected block's may not. ``lines``: of a unit in its narrowest map, a head's width.
    """

    name: str
    kind: str
    cost: int
    gone: Tensor
    open: bool = True
    lines: int = 1

    @property
    def count(self) -> int:
        """How many units there are."""
        return self.gone.numel()


@dataclass(frozen=True)
class Total:
    """What ratios are shares of: weights of the blocks' linear maps, and parameters of the model."""

    decoder: int
    model: int


def budget(populations: Sequence[Population], ratio: float, pattern: Units, total: Total) -> float:
    """Return what may go: parameters, or units where the pattern counts units."""
    if pattern.counts == "units":
        return ratio * sum(one.count for one in populations if one.open)
    return ratio * (total.decoder if pattern.counts == "decoder" else total.model)


def equal_shares(
    populations: Sequence[Population], ratio: float, pattern: Units, total: Total
) -> dict[str, int]:
    """Return by population how many units are gone at ``ratio`` where every open one loses the same share of its units.

    Where a ratio counts units, each loses the same number; where it counts parameters, some lose one more than others,
    so that the budget is met to half the cheapest unit. Raises ConfigError where open units are not enough.
    """
    if pattern.counts == "units" and pattern.head_ratio is None:
        return _rounded(
            {one.name: _share(one, ratio, pattern) for one in populations}, populations, pattern, ratio
        )
    counts, left = dict[str, int](), 0.0
    for group, amount in _by_budget(
        populations, ratio, pattern, total
    ):  # the dearest first: the others even it out
        found = _spread(group, amount + left, pattern)
        left += amount - sum(unit_price(one, pattern) * found[one.name] for one in group)
        counts |= found
    return _rounded({one.name: counts.get(one.name, 0) for one in populations}, populations, pattern, ratio)


def select(
    populations: Sequence[Population], importance: Mapping[str, Tensor], ratio: float, allocation: str,
    pattern: Units, total: Total,
) -> dict[str, Tensor]:  # fmt: skip
    """Return keep masks (count,) bool by population; ``importance`` (count,) by population, the lowest go.

    Raises ConfigError for an unknown allocation or too large a ratio, ModelError for an importance that is not a number.
    """
    for one in populations:
        if not bool(torch.isfinite(importance[one.name]).all()):
            raise ModelError(
                f"{one.name}: an importance is not finite. Check the checkpoint and the calibration text."
            )
    if allocation == UNIFORM:
        counts = equal_shares(populations, ratio, pattern, total)
        return {one.name: lowest(one, importance[one.name], counts[one.name]) for one in populations}
    if allocation not in (GLOBAL, BY_KIND):
        raise ConfigError("allocation.name", allocation, f"{UNIFORM} | {GLOBAL} | {BY_KIND}")
    keep = {one.name: ~one.gone for one in populations}
    if allocation == GLOBAL:
        parts = [(list(populations), budget(populations, ratio, pattern, total))]
    else:
        parts = _by_budget(populations, ratio, pattern, total)
    may_go = {one.name for one in _all_but_last(populations, importance, pattern) if one.open}
    for group, spend in parts:
        keep |= _cheapest([one for one in group if one.name in may_go], importance, spend, pattern)
    if pattern.round_to is None:
        return keep
    found = {name: int((~stays).sum()) for name, stays in keep.items()}
    counts = _rounded(found, populations, pattern, ratio)
    return {one.name: lowest(one, importance[one.name], counts[one.name]) for one in populations}


def lowest(population: Population, importance: Tensor, count: int) -> Tensor:
    """Return the mask (count,) bool that keeps all but the ``count`` least important, those gone before first."""
    order = _key(population, importance).sort(stable=True).indices
    keep = torch.ones(population.count, dtype=torch.bool)
    keep[order[: max(count, int(population.gone.sum()))]] = False
    return keep


def _key(population: Population, importance: Tensor) -> Tensor:
    return importance.to("cpu", torch.float64).masked_fill(population.gone, float("-inf"))


def unit_price(population: Population, pattern: Units) -> int:
    """Return what one unit counts in a budget of the pattern: 1, or its parameters."""
    return 1 if pattern.counts == "units" else population.cost


def _share(population: Population, ratio: float, pattern: Units) -> int:
    """Whole units of a share of units, within the limit of the pattern: down, or as arXiv:2305.11627's code, which takes
    lines, rounded up, and of those whole units: 0.2 of 32 heads of 128 are 820 lines, 6 heads; of 9 neurons they are 2."""
    lines = population.lines if pattern.rounding == "published" else 1
    wanted = ratio * population.count * lines
    whole = int(wanted + ROUNDING)
    if pattern.rounding == "published" and wanted - whole > ROUNDING:
        whole += 1
    return min(whole // lines, _most(population, pattern))


def _most(population: Population, pattern: Units) -> int:
    if not population.open:
        return 0
    # of what goes as a whole some stay in the model, see _all_but_last
    return population.count if population.kind in WHOLE else max(0, population.count - pattern.min_units)


def _rounded(
    counts: Mapping[str, int], populations: Sequence[Population], pattern: Units, ratio: float
) -> dict[str, int]:
    """Return the numbers of units that are gone, those of neurons moved to what leaves a multiple of ``round_to``, or all.

    The largest remainders go up, ties to earlier blocks, until the neurons' cost is that of ``counts`` to half a
    multiple's. Raises ConfigError where blocks cannot lose as many and keep a multiple.
    """
    found = dict(counts)
    if pattern.round_to is None:
        return found
    neurons = [one for one in populations if one.kind == NEURONS and one.open]
    steps, remainders = {}, {}
    for one in neurons:
        may = _multiples(one, pattern)
        below = max((n for n in may if n <= counts[one.name]), default=may[0])
        steps[one.name] = [n for n in may if n > below]
        width = steps[one.name][0] - below if steps[one.name] else 1
        remainders[one.name] = (counts[one.name] - below) / width
        found[one.name] = below
    short = sum((counts[one.name] - found[one.name]) * unit_price(one, pattern) for one in neurons)
    order = sorted(neurons, key=lambda one: -remainders[one.name])
    while True:  # once, unless some blocks have nothing more to lose
        before = short
        for one in order:
            more = (
                (steps[one.name][0] - found[one.name]) * unit_price(one, pattern) if steps[one.name] else None
            )
            if more is not None and short >= more / 2:
                found[one.name] = steps[one.name].pop(0)
                short -= more
        if short == before:
            break
    if neurons and short > pattern.round_to * max(unit_price(one, pattern) for one in neurons):
        amount = sum(counts[one.name] * unit_price(one, pattern) for one in neurons)
        raise _too_much(ratio, pattern, amount, int(amount - short))
    return found


def _multiples(population: Population, pattern: Units) -> list[int]:
    """How many neurons of one block may be gone, ascending: as many as are, none more, or what leaves a multiple."""
    assert pattern.round_to is not None
    gone, stays = int(population.gone.sum()), range(0, population.count + 1, pattern.round_to)
    most = _most(population, pattern)
    left = [population.count - n for n in reversed(stays) if gone < population.count - n <= most]
    return [gone, *left]


def _all_but_last(
    populations: Sequence[Population], importance: Mapping[str, Tensor], pattern: Units
) -> list[Population]:
    """Return the populations with as many of the most important blocks, or sub-layers of a kind, closed as have to stay in
    the model."""
    stay: set[str] = set()
    for kind in WHOLE:
        own = [one for one in populations if one.kind == kind]
        may_go = [one for one in own if one.open]
        n_stay = max(0, pattern.min_units - (len(own) - len(may_go))) if own else 0
        dearest = sorted(may_go, key=lambda one: -float(_key(one, importance[one.name]).max()))
        stay |= {one.name for one in dearest[:n_stay]}
    return [replace(one, open=one.open and one.name not in stay) for one in populations]


def _by_budget(
    populations: Sequence[Population], ratio: float, pattern: Units, total: Total
) -> list[tuple[list[Population], float]]:
    """Return open populations that lose the same share, with what goes of them; those of the dearest units first."""
    groups = [[one for one in populations if one.open]]
    spend = [budget(populations, ratio, pattern, total)]
    if pattern.head_ratio is not None:
        heads = [one for one in groups[0] if one.kind == HEADS]
        others = [one for one in groups[0] if one.kind != HEADS]
        of_heads = pattern.head_ratio * sum(unit_price(one, pattern) * one.count for one in heads)
        groups, spend = [heads, others], [of_heads, spend[0] - of_heads]
    else:  # the same share of every kind; apart, since a ranking by kind compares each on its own
        kinds = list(dict.fromkeys(one.kind for one in groups[0]))
        whole = sum(unit_price(one, pattern) * one.count for one in groups[0])
        groups = [[one for one in groups[0] if one.kind == kind] for kind in kinds]
        costs = [sum(unit_price(one, pattern) * one.count for one in group) for group in groups]
        spend = [spend[0] * cost / max(1, whole) for cost in costs]
    found = []
    for group, amount in zip(groups, spend, strict=True):
        most = sum(unit_price(one, pattern) * _most(one, pattern) for one in group)
        if amount < -ROUNDING or amount > most + max((unit_price(one, pattern) for one in group), default=0):
            raise _too_much(ratio, pattern, amount, most)
        found.append((group, amount))
    return sorted(found, key=lambda item: -max((unit_price(one, pattern) for one in item[0]), default=0))


def _spread(group: Sequence[Population], amount: float, pattern: Units) -> dict[str, int]:
    """Whole units of the same share of each population, the largest remainders rounded up until the cost is met."""
    have = sum(unit_price(one, pattern) * one.count for one in group)
    share = min(1.0, max(0.0, amount / max(1, have)))
    counts = {one.name: min(int(share * one.count + ROUNDING), _most(one, pattern)) for one in group}
    short = amount - sum(unit_price(one, pattern) * counts[one.name] for one in group)
    for one in sorted(group, key=lambda one: int(share * one.count + ROUNDING) - share * one.count):
        if short >= unit_price(one, pattern) / 2 and counts[one.name] < _most(one, pattern):
            counts[one.name] += 1
            short -= unit_price(one, pattern)
    return counts


def _cheapest(
    group: Sequence[Population], importance: Mapping[str, Tensor], spend: float, pattern: Units
) -> dict[str, Tensor]:
    """Return keep masks after the prefix of one ranking whose costs come closest to ``spend``."""
    if not group:
        if spend > ROUNDING:
            raise _too_much(spend, pattern, spend, 0)
        return {}
    keys, costs, places = [], [], []
    for one in group:
        key, order = _key(one, importance[one.name]).sort(stable=True)
        stays = order.numel() - _most(one, pattern)  # the most important of each population are not at choice
        chosen = order[: order.numel() - stays]
        keys.append(key[: chosen.numel()])
        costs.append(torch.full((chosen.numel(),), unit_price(one, pattern), dtype=torch.float64))
        places.append(chosen)
    key, cost = torch.cat(keys), torch.cat(costs)
    order = key.sort(stable=True).indices
    sums = torch.cat([cost.new_zeros(1), cost[order].cumsum(0)])
    if spend > float(sums[-1]) + max(unit_price(one, pattern) for one in group):
        raise _too_much(spend / max(1.0, float(sums[-1])), pattern, spend, int(sums[-1]))
    length = max(int((sums - spend).abs().argmin()), int((key == float("-inf")).sum()))
    taken = torch.zeros(key.numel(), dtype=torch.bool)
    taken[order[:length]] = True
    keep, offset = {}, 0
    for one, chosen in zip(group, places, strict=True):
        mask = torch.ones(one.count, dtype=torch.bool)
        mask[chosen[taken[offset : offset + chosen.numel()]]] = False
        keep[one.name] = mask
        offset += chosen.numel()
    return keep


def _too_much(ratio: float, pattern: Units, amount: float, most: int) -> ConfigError:
    what = "units" if pattern.counts == "units" else "parameters"
    hint = (
        f"{amount:,.0f} {what} are asked for; {most:,} can go. See sparsity.kinds, counts, head_ratio, protect_first, "
        "protect_last and min_units."
    )
    return ConfigError("sparsity.ratio", ratio, "a share that the open units can give", hint)
