"""Rows and columns of linear layers, compared over the whole model (arXiv:2312.17244).

Dead lines (`prunelab.passes.live`) make the coupling between layers: a removed row of fc1 leaves a column of fc2 without
input, which the next shot then removes for nothing, and the other way round. Dead structures cost 0 and take no part in
updates, so masks only grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.models.block import LinearSite
from prunelab.passes.chooser import Choice, Decision, Generators, Part, Pruned, check_values
from prunelab.passes.collect import BlockValues, Needs
from prunelab.passes.live import LivePart, write_live
from prunelab.pattern.base import GLOBAL, UNIFORM, Pattern
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Mask, Structured
from prunelab.sparsity.structured import SiteCosts, select


@dataclass(frozen=True)
class Lines:
    """The chooser of rows and columns."""

    pattern: Pattern
    kind = "lines"
    joins_bias = True
    looks_twice = True

    def is_whole(self, method: Any, allocation: object, shots: int) -> bool:
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
        shared = LivePart(needs)
        for site in sites:
            mask = cast(Structured, masks[site.name])
            own = values.get(site.name, {})
            check_values(site.name, own, needs)
            yield shared.part(site, own, generators(site.name), mask.keep_rows, mask.joined_columns())

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
                write_live(linear, updated, *live)
        new = masking.split(keep_rows, keep_columns, linear.bias is not None)
        masking.apply(new, linear.weight, linear.bias)
        return new

    def prune(self, method: Any, part: Part, ratio: float) -> Pruned:
        """Never asked: rows and columns are compared over the whole model."""
        raise ConfigError("sparsity.pattern", self.pattern.name, "a pattern that is chosen block by block")

    def decide(self, method: Any, part: Part, ratios: Sequence[float]) -> list[Decision]:
        """Never asked either."""
        raise ConfigError("sparsity.pattern", self.pattern.name, "a pattern that is chosen block by block")
