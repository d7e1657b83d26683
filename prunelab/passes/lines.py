"""Rows and columns of linear layers, compared over the whole model (arXiv:2312.17244).

Dead: a row whose weights are all zero or which a statistic of its output says never carried a signal, and likewise a
column. They make the coupling between layers: a removed row of fc1 leaves a column of fc2 without input, which the
next shot then removes for nothing, and the other way round. Dead structures cost 0 and take no part in updates, so
masks only grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunelab.errors import ConfigError
from prunelab.models.block import LinearSite
from prunelab.passes.chooser import Choice, Decision, Generators, Part, Pruned, check_values
from prunelab.passes.collect import BlockValues, Needs
from prunelab.pattern.base import GLOBAL, UNIFORM, Pattern
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Mask, Structured
from prunelab.sparsity.structured import SiteCosts, select
from prunelab.statistic import INPUT
from prunelab.stats.view import View


@dataclass(frozen=True)
class Lines:
    """The chooser of rows and columns."""

    pattern: Pattern
    kind = "lines"
    joins_bias = True
    looks_twice = True

    def is_whole(self, allocation: object, shots: int) -> bool:
        """Always: a shot looks at the model as the shots before have left it."""
        return True

    def start(self, site: LinearSite) -> Mask:
        """Everything stays."""
        return masking.full(site.linear.weight, site.linear.bias)

    def parts(
        self, sites: Sequence[LinearSite], masks: Mapping[str, Mask], values: BlockValues, needs: Needs,
        generators: Generators,
    ) -> Iterator[Part]:  # fmt: skip
        """Yield a part per layer: the live part of its weight and of its statistics."""
        latest: dict[str, tuple[Any, Tensor, Any]] = {}  # layers with one input come one after the other
        for site in sites:
            mask = cast(Structured, masks[site.name])
            own = values.get(site.name, {})
            check_values(site.name, own, needs)
            live = _live(site, mask, own, needs)
            restricted = {}
            for need, value in own.items():
                statistic, kept = needs.statistics[need], live[needs.statistics[need].reads == INPUT]
                before = latest.get(need)
                if before is None or before[0] is not value or not torch.equal(before[1], kept):
                    before = latest[need] = (value, kept, statistic.restrict(value, kept))
                restricted[need] = before[2]
            W = _joined(site.linear)[live[0]][:, live[1]]
            view = View(
                (site.name,), (W.shape[0],), W, (generators(site.name),), restricted,
                site.linear.bias is not None and bool(live[1][-1]),
            )  # fmt: skip
            yield Part((site,), view, live)

    def price(self, method: Any, part: Part, masks: Mapping[str, Mask]) -> dict[str, SiteCosts]:
        """Return the method's costs in full coordinates, 0 where dead, on the CPU."""
        (site,), view, mask = part.sites, part.view, cast(Structured, masks[part.view.name])
        live = cast(tuple[Tensor, Tensor], part.live)
        if view.W.numel() == 0:
            costs = (view.W.new_zeros(view.W.shape[0]), view.W.new_zeros(view.W.shape[1]))
        else:
            costs = method.costs(view)
        full = []
        for vector, lines in zip(costs, live, strict=True):
            spread = torch.zeros(lines.numel(), dtype=torch.float64)
            spread[lines.cpu()] = vector.to("cpu", torch.float64)
            full.append(spread)
        removed = ~mask.keep_rows, ~mask.joined_columns()
        return {site.name: SiteCosts(site.name, full[0], full[1], *removed)}

    def choose(self, prices: Mapping[str, Any], target: float, allocation: str) -> Choice:
        """One threshold over all layers, or the same target for each."""
        if allocation not in (GLOBAL, UNIFORM):
            raise ConfigError("allocation.name", allocation, f"{GLOBAL} | {UNIFORM}")
        selection = select(list(prices.values()), target, allocation)
        return Choice(dict(zip(prices, selection.keep, strict=True)), selection.threshold)

    def one(
        self, site: LinearSite, masks: Mapping[str, Mask], values: BlockValues, needs: Needs, generators: Generators
    ) -> Part:  # fmt: skip
        """Return the live part of a layer."""
        return next(self.parts((site,), masks, values, needs, generators))

    @torch.no_grad()
    def take(
        self,
        method: Any,
        site: LinearSite,
        decision: tuple[Tensor, Tensor],
        part: Callable[[], Part],
        mask: Mask,
    ) -> Mask:
        """Let the method update what stays if something alive goes; then zero what goes."""
        linear, device = site.linear, site.linear.weight.device
        keep_rows, keep_columns = (keep.to(device) for keep in decision)
        seen = part()
        live = cast(tuple[Tensor, Tensor], seen.live)
        kept = keep_rows[live[0]], keep_columns[live[1]]
        if not (kept[0].all() and kept[1].all()):
            updated = method.update(seen.view, *kept)
            if updated is not None:
                _write(linear, updated, *live)
        new = masking.split(keep_rows, keep_columns, linear.bias is not None)
        masking.apply(new, linear.weight, linear.bias)
        return new

    def prune(self, method: Any, part: Part, ratio: float) -> Pruned:
        """Never asked: rows and columns are compared over the whole model."""
        raise ConfigError("sparsity.pattern", self.pattern.name, "a pattern that is chosen block by block")

    def decide(self, method: Any, part: Part, ratios: Sequence[float]) -> list[Decision]:
        """Never asked either."""
        raise ConfigError("sparsity.pattern", self.pattern.name, "a pattern that is chosen block by block")


def _joined(linear: nn.Linear) -> Tensor:
    """``[W  b]``, (R, C + 1), or W where there is no bias; detached."""
    weight = linear.weight.detach()
    return weight if linear.bias is None else torch.cat([weight, linear.bias.detach()[:, None]], 1)


def _live(
    site: LinearSite, mask: Structured, values: Mapping[str, Any], needs: Needs
) -> tuple[Tensor, Tensor]:
    """Return which rows and columns of ``[W  b]`` are neither zero nor without a signal."""
    used = _joined(site.linear) != 0
    rows, columns = used.any(1), used.any(0)
    rows &= mask.keep_rows.to(rows.device)
    columns &= mask.joined_columns().to(columns.device)
    for need, value in values.items():
        statistic = needs.statistics[need]
        signal = statistic.live(value)
        if signal is not None:
            lines = columns if statistic.reads == INPUT else rows
            lines[: signal.numel()] &= signal.to(lines.device)
    return rows, columns


@torch.no_grad()
def _write(linear: nn.Linear, updated: Tensor, live_rows: Tensor, live_columns: Tensor) -> None:
    """Put the new live weights in their places of weight and bias; everything else stays as it is."""
    joined = _joined(linear).clone()
    rows, columns = live_rows.nonzero(), live_columns.nonzero()[:, 0]
    joined[rows, columns] = updated.to(joined.dtype)
    linear.weight.copy_(joined[:, : linear.in_features])
    if linear.bias is not None:
        linear.bias.copy_(joined[:, -1])
