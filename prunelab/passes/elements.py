"""Single weights: any of them, or all but n of every m (arXiv:2406.15524, section 2). Biases are never removed.

Layers that share an input come as one part, their rows stacked, unless a statistic is each layer's own. A method that
makes the weights that stay up for those that go (`update_kept`, arXiv:2312.17244) sees the live part of ``[W  b]`` of each
layer, and its scores are compared over the whole model. So are scores in several shots: each takes the lowest of what the
shots before have left, or with n:m the cheapest groups, as many as its target says. What is removed stays removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.models.block import LinearSite
from prunelab.passes.chooser import Choice, Decision, Generators, Part, Pruned, check_values
from prunelab.passes.collect import BlockValues, Needs
from prunelab.passes.live import LivePart, write_live
from prunelab.pattern.base import GLOBAL, UNIFORM, UPDATE, Pattern, Within
from prunelab.sparsity.element import Budget, select, select_global, select_groups, select_ratios
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

    def is_whole(self, method: Any, allocation: object, shots: int) -> bool:
        """One threshold over all layers, and several shots, look at the whole model first; so does who updates weights."""
        return allocation == GLOBAL or shots > 1 or hasattr(method, UPDATE)

    def start(self, site: LinearSite) -> Mask:
        """Everything stays."""
        return Elementwise(torch.ones(site.linear.weight.shape, dtype=torch.bool))

    def parts(
        self, sites: Sequence[LinearSite], masks: Mapping[str, Mask], values: BlockValues, needs: Needs,
        generators: Generators,
    ) -> Iterator[Part]:  # fmt: skip
        """Yield a part per shared input, or per layer; its statistics are taken out of ``values``."""
        if needs.ones:
            shared = LivePart(needs)
            for site in sites:
                check_values(site.name, own := values.pop(site.name, {}), needs)
                yield shared.part(site, own, generators(site.name))
            return
        for members in [(site,) for site in sites] if needs.per_layer else _by_input(sites):
            names = tuple(site.name for site in members)
            shared, *_ = [values.pop(name, {}) for name in names]
            check_values(names[0], shared, needs)
            weights = [site.linear.weight.detach() for site in members]
            W = weights[0] if len(weights) == 1 else torch.cat(weights)
            rows = tuple(weight.shape[0] for weight in weights)
            yield Part(members, View(names, rows, W, tuple(map(generators, names)), shared))

    def price(self, method: Any, part: Part, masks: Mapping[str, Mask]) -> dict[str, Scores]:
        """Return the scores of every layer: those of removed weights are the lowest."""
        score, view = method.score(part.view), part.view
        if part.live is not None:
            score = _spread(score, part.live, part.sites[0].linear.in_features)
        found = {}
        for name, rows in zip(view.names, view.parts() if part.live is None else [slice(None)], strict=True):
            own = score[rows].float()
            keep = cast(Elementwise, masks[name]).keep_weight
            if not bool(keep.all()):
                own = own.clamp_min(_LEAST).masked_fill_(~keep.to(own.device), 0)
            found[name] = Scores(own, self.pattern.within or method.within)
        return found

    def choose(self, prices: Mapping[str, Any], target: float, allocation: str) -> Choice:
        """One threshold over all layers, or the same ratio in each; scores of all of them are held at once, four bytes a
        weight."""
        if allocation not in (GLOBAL, UNIFORM):
            raise ConfigError("allocation.name", allocation, f"{GLOBAL} | {UNIFORM}")
        return Choice(
            dict(zip(prices, self._keep(list(prices.values()), target, allocation), strict=True)), None
        )

    def _keep(self, prices: Sequence[Scores], target: float, allocation: str) -> Iterable[Tensor]:
        """Return what stays of every layer (R, C) bool."""
        if self.pattern.group is not None:
            share = target / cast(float, self.pattern.fixed_ratio)
            return select_groups(
                [one.score for one in prices], self.pattern.group, share, allocation == GLOBAL
            )
        if allocation == GLOBAL:
            return select_global([one.score for one in prices], target)
        rounding = self.pattern.rounding
        return [select_ratios(one.score, [target], one.within, rounding)[0] for one in prices]

    def one(
        self, site: LinearSite, masks: Mapping[str, Mask], values: BlockValues, needs: Needs, generators: Generators
    ) -> Part:  # fmt: skip
        """Return one layer's part."""
        return next(self.parts((site,), masks, values, needs, generators))

    def take(
        self, method: Any, site: LinearSite, decision: Tensor, part: Callable[[], Part], mask: Mask
    ) -> Mask:
        """Let the method update what stays if something alive goes; then zero what goes."""
        keep = decision.to(site.linear.weight.device)
        if hasattr(method, UPDATE) and not bool(keep.all()):
            seen = part()
            rows, columns = cast(tuple[Tensor, Tensor], seen.live)
            if site.linear.bias is not None:
                keep = torch.cat([keep, keep.new_ones(len(keep), 1)], 1)
            kept = keep[rows][:, columns]
            updated = None if bool(kept.all()) else method.update_kept(seen.view, kept)
            if updated is not None:
                write_live(site.linear, updated, rows, columns)
        erase(site.linear.weight, decision.to(site.linear.weight.device))
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


@dataclass(frozen=True, eq=False)
class Scores:
    """``score`` (R, C) of a layer's weights, and where they compete when each layer loses the same ratio."""

    score: Tensor
    within: Within


_LEAST = torch.finfo(torch.float32).tiny  # what stays scores more than the 0 of what is gone


def _spread(score: Tensor, live: tuple[Tensor, Tensor], columns: int) -> Tensor:
    """Return the scores of the live part in the layer's own places (R, columns), 0 where dead; a bias has none."""
    full = score.new_zeros(live[0].numel(), live[1].numel())
    full[live[0].nonzero(), live[1].nonzero()[:, 0]] = score
    return full[:, :columns].float()


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
