"""What a method decides for the layers of one input, and how that gets into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from prunelab.methods.base import LinearMethod, ScoringMethod, UpdatingMethod
from prunelab.models.block import LinearSite
from prunelab.sparsity.element import select, select_ratios
from prunelab.sparsity.mask import Elementwise, erase
from prunelab.sparsity.pattern import Budget, Pattern
from prunelab.stats.linear import LinearView
from prunelab.structures.state import SiteState

Decision = tuple[Tensor, Tensor | None]  # keep (R, C) bool; new weights (R, C), None = as they are


def decide(
    view: LinearView, method: LinearMethod, pattern: Pattern, ratios: Sequence[float]
) -> list[Decision]:
    """Return what ``method`` decides for each ratio; a scoring method's scores are taken and ordered once."""
    if not hasattr(method, "score"):
        return _update(view, cast(UpdatingMethod, method), pattern, ratios)
    method = cast(ScoringMethod, method)
    score = method.score(view)
    if pattern.n is not None and pattern.m is not None:
        keep = select(score, (pattern.n, pattern.m))
        return [(keep, None) for _ in ratios]
    within = pattern.within or method.within
    if within == "row":
        return [(keep, None) for keep in select_ratios(score, ratios)]
    parts = [select_ratios(score[part], ratios, "matrix") for part in view.parts()]
    return [(torch.cat(keeps), None) for keeps in zip(*parts, strict=True)]


def _update(
    view: LinearView, method: UpdatingMethod, pattern: Pattern, ratios: Sequence[float]
) -> list[Decision]:
    """Let an updating method prune for each ratio, side by side if it can."""
    wanted = [ratio for ratio in ratios if ratio > 0]
    budgets = [[Budget(ratio, pattern.n, pattern.m)] * len(view.rows) for ratio in wanted]
    found: list[Decision] = []
    if budgets and hasattr(method, "prune_many"):
        found += cast(Any, method).prune_many(view, budgets)
    else:
        found += [method.prune(view, each) for each in budgets]
    left = iter(found)
    return [
        next(left) if ratio > 0 else (torch.ones_like(view.W, dtype=torch.bool), None) for ratio in ratios
    ]


def states(
    group: Sequence[LinearSite], view: LinearView, keep: Tensor, weight: Tensor | None
) -> dict[str, SiteState]:
    """The layers of a group as pruned; nothing is written to the model."""
    items = {}
    for site, part in zip(group, view.parts(), strict=True):
        own = (view.W if weight is None else weight)[part].to(view.W.dtype, copy=True)
        own = own.contiguous()
        erase(own, keep[part])
        bias = site.linear.bias
        mask = Elementwise(keep[part].cpu().contiguous())
        items[site.name] = SiteState(own, None if bias is None else bias.detach().clone(), mask)
    return items


def write(
    group: Sequence[LinearSite], view: LinearView, keep: Tensor, weight: Tensor | None
) -> dict[str, Elementwise]:
    """Put the pruned weights of a group in place; return its masks."""
    masks = {}
    for site, part in zip(group, view.parts(), strict=True):
        if weight is not None:
            site.linear.weight.copy_(weight[part])
        erase(site.linear.weight, keep[part])
        masks[site.name] = Elementwise(keep[part].cpu().contiguous())
    return masks
