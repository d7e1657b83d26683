"""Single weights: any of them, or all but n of every m (arXiv:2406.15524, section 2). Biases stay.

Layers that share an input come as one part, their rows stacked, unless a statistic is each layer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunelab.models.block import LinearSite
from prunelab.passes.chooser import Choice, Decision, Generators, Part, Pruned, check_values
from prunelab.passes.collect import BlockValues, Needs
from prunelab.pattern.base import GLOBAL, Pattern
from prunelab.sparsity.element import Budget, select, select_global, select_ratios
from prunelab.sparsity.mask import Elementwise, Mask, erase
from prunelab.stats.view import View
from prunelab.structures.state import SiteState


@dataclass(frozen=True)
class Elements:
    """The chooser of single weights."""

    pattern: Pattern
    kind = "elements"
    joins_bias = False
    looks_twice = False

    def is_whole(self, allocation: object, shots: int) -> bool:
        """Only one threshold over all layers looks at the whole model first."""
        return allocation == GLOBAL

    def start(self, site: LinearSite) -> Mask:
        """Everything stays."""
        return Elementwise(torch.ones(site.linear.weight.shape, dtype=torch.bool))

    def parts(
        self, sites: Sequence[LinearSite], masks: Mapping[str, Mask], values: BlockValues, needs: Needs,
        generators: Generators,
    ) -> Iterator[Part]:  # fmt: skip
        """Yield a part per shared input, or per layer; its statistics are taken out of ``values``."""
        for members in [(site,) for site in sites] if needs.per_layer else _by_input(sites):
            names = tuple(site.name for site in members)
            shared, *_ = [values.pop(name, {}) for name in names]
            check_values(names[0], shared, needs)
            weights = [site.linear.weight.detach() for site in members]
            W = weights[0] if len(weights) == 1 else torch.cat(weights)
            rows = tuple(weight.shape[0] for weight in weights)
            yield Part(members, View(names, rows, W, tuple(map(generators, names)), shared))

    def price(self, method: Any, part: Part, masks: Mapping[str, Mask]) -> dict[str, Tensor]:
        """Return the scores (R, C) of every layer."""
        score = method.score(part.view)
        return {name: score[rows] for name, rows in zip(part.view.names, part.view.parts(), strict=True)}

    def choose(self, prices: Mapping[str, Any], target: float, allocation: str) -> Choice:
        """One threshold over all layers; scores of all of them are held at once, four bytes a weight."""
        keep = select_global(list(prices.values()), target)
        return Choice(dict(zip(prices, keep, strict=True)), None)

    def one(
        self, site: LinearSite, masks: Mapping[str, Mask], values: BlockValues, needs: Needs, generators: Generators
    ) -> Part:  # fmt: skip
        """Return one layer's part."""
        return next(self.parts((site,), masks, values, needs, generators))

    def take(
        self, method: Any, site: LinearSite, decision: Tensor, part: Callable[[], Part], mask: Mask
    ) -> Mask:
        """Zero what goes."""
        erase(site.linear.weight, decision)
        return Elementwise(decision.cpu())

    def prune(self, method: Any, part: Part, ratio: float) -> Pruned:
        """Decide and write."""
        return Pruned(write(part, *self.decide(method, part, [ratio])[0]))

    def decide(self, method: Any, part: Part, ratios: Sequence[float]) -> list[Decision]:
        """Return what goes at each ratio; a scoring method's scores are taken and ordered once."""
        view = part.view
        if not hasattr(method, "score"):
            return self._updated(method, view, ratios)
        score = method.score(view)
        if self.pattern.group is not None:
            keep = select(score, self.pattern.group)
            return [(keep, None) for _ in ratios]
        within, rounding = self.pattern.within or method.within, self.pattern.rounding
        by_layer = [select_ratios(score[rows], ratios, within, rounding) for rows in view.parts()]
        return [(torch.cat(keeps), None) for keeps in zip(*by_layer, strict=True)]

    def _updated(self, method: Any, view: View, ratios: Sequence[float]) -> list[Decision]:
        """Let a method that repairs as it goes prune for each ratio, side by side if it can."""
        wanted = [ratio for ratio in ratios if ratio > 0]
        budgets = [
            [Budget(ratio, self.pattern.group, self.pattern.rounding)] * len(view.rows) for ratio in wanted
        ]
        decisions: list[Decision] = []
        if budgets and hasattr(method, "prune_many"):
            decisions += method.prune_many(view, budgets)
        else:
            decisions += [method.prune(view, one) for one in budgets]
        pending = iter(decisions)
        whole = torch.ones_like(view.W, dtype=torch.bool)
        return [next(pending) if ratio > 0 else (whole, None) for ratio in ratios]


def _by_input(sites: Sequence[LinearSite]) -> list[tuple[LinearSite, ...]]:
    members: dict[int, list[LinearSite]] = {}
    for site in sites:
        members.setdefault(site.shared, []).append(site)
    return [tuple(one) for one in members.values()]


def states(part: Part, keep: Tensor, weight: Tensor | None) -> dict[str, SiteState]:
    """Return the layers of a part as pruned; nothing is written to the model."""
    items = {}
    for site, rows in zip(part.sites, part.view.parts(), strict=True):
        new = (part.view.W if weight is None else weight)[rows].to(part.view.W.dtype, copy=True).contiguous()
        erase(new, keep[rows])
        bias = site.linear.bias
        mask = Elementwise(keep[rows].cpu().contiguous())
        items[site.name] = SiteState(new, None if bias is None else bias.detach().clone(), mask)
    return items


@torch.no_grad()
def write(part: Part, keep: Tensor, weight: Tensor | None) -> dict[str, Mask]:
    """Put the pruned weights of a part in place; return its masks."""
    masks: dict[str, Mask] = {}
    for site, rows in zip(part.sites, part.view.parts(), strict=True):
        if weight is not None:
            site.linear.weight.copy_(weight[rows])
        erase(site.linear.weight, keep[rows])
        masks[site.name] = Elementwise(keep[rows].cpu().contiguous())
    return masks
