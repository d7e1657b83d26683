"""How redundant a layer is: its spectrum, and groups of units that all say the same. arXiv:2406.00030 stresses that pruning
by information explains itself; how its pictures are made is not public, so what is told here is a reconstruction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunelab.information.search import Removals

POINTS = 33  # of a spectrum
MOST_GROUPS, MOST_MEMBERS = 32, 24  # that are told of a layer, and of a group
TOKENS, PAIRS = 6, 12  # that move a unit most, and pairs of a layer of which they are told
MOST_VALUES = 2**22  # behind a quantile; of more every n-th


@dataclass(frozen=True, eq=False)
class Group:
    """Units, (size,) int64 from the one with most partners on, of which any two share more than a level; their mean value."""

    members: Tensor
    mean: float


@dataclass(frozen=True, eq=False)
class Seen:
    """What all pairs say of m units: ``nearest`` (m,) float64, each one's largest value; ``groups`` of those above ``level``."""

    nearest: Tensor
    groups: list[Group]
    level: float


def look(matrix: Tensor, threshold: float | None, quantile: float | None, live: Tensor) -> Seen:
    """Return what ``matrix`` (m, m), symmetric, says; the level is ``threshold``, or the ``quantile`` of all pairs' values."""
    if threshold is None:
        assert quantile is not None
        threshold = level_of(matrix, quantile)
    return Seen(nearest_values(matrix), groups(matrix, threshold, live), threshold)


def nearest_values(matrix: Tensor) -> Tensor:
    """Return the largest value of each row off the diagonal, (m,) float64."""
    largest = matrix.new_empty(len(matrix))
    for start in range(0, len(matrix), 256):
        rows = matrix[start : start + 256].clone()
        rows[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -math.inf
        largest[start : start + 256] = rows.amax(1)
    return largest.double().cpu()


def level_of(matrix: Tensor, share: float) -> float:
    """Return the value that the given share of all pairs in ``matrix`` (m, m), symmetric, does not exceed; m >= 2."""
    m = len(matrix)
    step = max(1, m * m // MOST_VALUES)
    step += step > 1 and math.gcd(step, m) > 1  # not always the same columns
    flat = matrix.reshape(-1)[::step]
    place = torch.arange(0, m * m, step, device=matrix.device)
    return float(torch.quantile(flat[place // m != place % m].double(), share))


def groups(matrix: Tensor, level: float, live: Tensor) -> list[Group]:
    """Return disjoint groups of two and more units, any two of one with a value above ``level``, the largest first.

    ``matrix`` (m, m), symmetric; ``live`` (m,) bool: others are in no group. Greedily: the unit with most partners that are
    free begins; of them those that share enough with all who are in it join, the strongest first. At most ``MOST_GROUPS``.
    ``O(m^2)`` and a row for each that joins.
    """
    above = (matrix > level).cpu()
    above.fill_diagonal_(False)
    above &= live.cpu() & live.cpu()[:, None]
    free, found = above.any(1), list[Group]()
    counts = above.sum(1)
    for _ in range(len(matrix)):
        if len(found) == MOST_GROUPS or not bool((counts > 0).any()):
            break
        first = int(counts.argmax())
        members, common = [first], above[first] & free
        order = matrix[first].argsort(descending=True, stable=True).cpu()
        for unit in order[common[order]].tolist():
            if bool(common[unit]):
                members.append(unit)
                common &= above[unit]
        chosen = torch.tensor(members)
        inside = matrix[chosen.to(matrix.device)][:, chosen.to(matrix.device)].double()
        pairs = len(members) * (len(members) - 1)
        found.append(Group(chosen, float((inside.sum() - inside.diagonal().sum()) / pairs)))
        free[chosen] = False
        counts -= above[:, chosen].sum(1)
        counts[~free] = 0
    return sorted(found, key=lambda group: (-len(group.members), -group.mean))


def group_rows(found: list[Group], here: Tensor, gone: Tensor) -> list[dict[str, Any]]:
    """Return a row for each group: size, how many are ``gone`` (count,) bool, mean value, and the first of its members.

    ``here`` (m,): the units' numbers.
    """
    rows = []
    for group in found:
        units = here[group.members]
        told = " ".join(map(str, units[:MOST_MEMBERS].tolist())) + (" …" if len(units) > MOST_MEMBERS else "")
        rows.append(
            {"units": len(units), "gone": int(gone[units].sum()), "mean_nmi": group.mean, "members": told}
        )
    return rows


def strongest(Z: Tensor, index: Tensor) -> Tensor:
    """Return the samples, (k, count) int64, that move each unit most: the norm of its channels ``index`` (count, lines) in
    the raw samples ``Z`` (n, C); k is ``TOKENS``, or n."""
    moved = Z[:, index.reshape(-1).to(Z.device)].double().square().view(len(Z), *index.shape).sum(2)
    return moved.topk(min(TOKENS, len(Z)), 0).indices.cpu()


def token_rows(removals: Removals, gone: Tensor, top: Tensor) -> list[dict[str, Any]]:
    """Return a row for each of the ``PAIRS`` most redundant pairs of which one unit is ``gone`` (count,) bool: ``nmi``, and
    by their numbers the samples ``top`` (k, count) that move either unit most, and how many of them they share."""
    found = [
        at for at in range(len(removals.order)) if int(removals.partner[at]) >= 0 and gone[removals.order[at]]
    ]
    rows = []
    for at in sorted(found, key=lambda at: -float(removals.value[at]))[:PAIRS]:
        unit, partner = int(removals.order[at]), int(removals.partner[at])
        own, other = top[:, unit].tolist(), top[:, partner].tolist()
        rows.append(
            {
                "unit": unit, "partner": partner, "nmi": float(removals.value[at]), "shared": len({*own} & {*other}),
                "unit_samples": " ".join(map(str, own)), "partner_samples": " ".join(map(str, other)),
            }
        )  # fmt: skip
    return rows


def spectrum_rows(values: Tensor) -> list[dict[str, Any]]:
    """Return the sorted ``values`` (n,), largest first, at up to ``POINTS`` ranks from the first to the last: ``rank`` from 1
    on, ``share`` of the units that have as much, and ``nmi``."""
    ordered = values.sort(descending=True).values.tolist()
    n = len(ordered)
    if not n:
        return []
    ranks = sorted({round(1 + (n - 1) * at / (POINTS - 1)) for at in range(POINTS)})
    return [{"rank": rank, "share": rank / n, "nmi": ordered[rank - 1]} for rank in ranks]
