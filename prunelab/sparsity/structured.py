"""Which rows and columns go: one threshold over all layers, or one per layer (arXiv:2312.17244).

Removing ``r`` rows and ``c`` columns of an (R, C) layer removes ``r C + c R - r c`` weights. Sorted by cost,
each structure of a layer therefore has a known increment, and one stable sort with one cumulative sum over
the increments of all layers gives the longest prefix within the budget: O(S log S) for S structures, where
the published code keeps one array of length S per layer. Ties fall to the earlier layer, rows before columns,
lower index; the published rule ``cost <= threshold`` would remove more than asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.pattern.base import GLOBAL, UNIFORM

GONE = float("-inf")  # sorts before every cost
ROUNDING = 1e-6  # weights; 0.3 x 1000 is 299.99999999999994 in binary and must mean 300


@dataclass(frozen=True, eq=False)
class SiteCosts:
    """Costs of removing single structures of one layer, all coordinates, float64 on the CPU.

    rows (R,), columns (C,) with the bias column last; gone_rows (R,), gone_columns (C,) bool: removed by an
    earlier shot, which stays so whatever the target. Dead structures carry cost 0.
    """

    name: str
    rows: Tensor
    columns: Tensor
    gone_rows: Tensor
    gone_columns: Tensor

    @property
    def total(self) -> int:
        """Number of weights of the layer."""
        return self.rows.numel() * self.columns.numel()


@dataclass(frozen=True, eq=False)
class Selection:
    """What stays of each layer, the cost of the dearest structure removed, and the weights removed in all."""

    keep: list[tuple[Tensor, Tensor]]
    threshold: float
    removed: int
    total: int


def removed_weights(shape: tuple[int, int], rows: int, columns: int) -> int:
    """Weights that vanish from an (R, C) layer with ``rows`` rows and ``columns`` columns."""
    return rows * shape[1] + columns * shape[0] - rows * columns


def select(sites: Sequence[SiteCosts], target: float, allocation: str = GLOBAL) -> Selection:
    """Remove the cheapest structures so that at most ``target`` of all weights vanish.

    ``allocation``: ``global`` compares costs between layers; ``uniform`` gives every layer the same target of its own.
    The total stays at or below the target and within less than one structure of it (per layer for
    ``uniform``); only structures of earlier shots can exceed it. Raises ConfigError for a bad target or allocation
    and ModelError for a cost that is not a number.
    """
    if not 0 <= target <= 1:
        raise ConfigError("target", target, "0 <= ratio <= 1", "It is the removed fraction of the weights.")
    if allocation not in (GLOBAL, UNIFORM):
        raise ConfigError("allocation.name", allocation, f"{GLOBAL} | {UNIFORM}")
    for site in sites:
        if not (torch.isfinite(site.rows).all() and torch.isfinite(site.columns).all()):
            raise ModelError(
                f"{site.name}: a removal cost is not finite. Check the checkpoint and the calibration text."
            )
    chosen = (
        _select(sites, target) if allocation == GLOBAL else [_select([site], target)[0] for site in sites]
    )
    keep, removed, threshold = [], 0, 0.0
    for site, gone in zip(sites, chosen, strict=True):
        rows, columns = gone[: site.rows.numel()], gone[site.rows.numel() :]
        keep.append((~rows, ~columns))
        shape = (site.rows.numel(), site.columns.numel())
        removed += removed_weights(shape, int(rows.sum()), int(columns.sum()))
        costs = torch.cat([site.rows, site.columns])[gone]
        threshold = max(threshold, float(costs.max()) if costs.numel() else 0.0)
    return Selection(keep, threshold, removed, sum(site.total for site in sites))


def _select(sites: Sequence[SiteCosts], target: float) -> list[Tensor]:
    """Return per layer which of its rows, then columns, go; (R + C,) bool."""
    budget = int(target * sum(site.total for site in sites) + ROUNDING)
    keys, increments, orders = zip(*(_increments(site) for site in sites), strict=True)
    key, increment = torch.cat(keys), torch.cat(increments)
    order = torch.sort(key, stable=True).indices
    within = torch.cumsum(increment[order], 0) <= budget
    taken = torch.zeros(key.numel(), dtype=torch.bool)
    taken[order] = within | (key[order] == GONE)
    gone, offset = [], 0
    for site_order in orders:
        mask = torch.zeros(site_order.numel(), dtype=torch.bool)
        mask[site_order] = taken[offset : offset + site_order.numel()]
        gone.append(mask)
        offset += site_order.numel()
    return gone


def _increments(site: SiteCosts) -> tuple[Tensor, Tensor, Tensor]:
    """Return, in the layer's order of cost: sort keys, weights removed by each next structure, and the
    order."""
    R, C = site.rows.numel(), site.columns.numel()
    cost = torch.cat([site.rows, site.columns]).to(torch.float64)
    gone = torch.cat([site.gone_rows, site.gone_columns])
    # rounding may leave a quadratic form just below zero; it must not come before the dead
    key, order = torch.sort(torch.where(gone, GONE, cost.clamp(min=0)), stable=True)
    r = torch.cumsum(order < R, 0)
    c = torch.cumsum(order >= R, 0)
    size = r * C + c * R - r * c
    return key, torch.diff(size, prepend=size.new_zeros(1)), order
