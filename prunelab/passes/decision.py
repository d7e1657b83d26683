"""What a method decides for the layers of one input, and how that gets into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from prunelab.methods.base import LinearMethod, ScoringMethod, UpdatingMethod
from prunelab.models.block import LinearSite
from prunelab.sparsity.element import select
from prunelab.sparsity.mask import Elementwise
from prunelab.sparsity.pattern import Budget, Pattern
from prunelab.stats.linear import LinearView
from prunelab.structures.state import SiteState


def decide(
    view: LinearView, method: LinearMethod, pattern: Pattern, ratio: float
) -> tuple[Tensor, Tensor | None]:
    """Return keep (R, C) bool and new weights (R, C), or None where the kept ones stay as they are."""
    if ratio == 0:
        return torch.ones_like(view.W, dtype=torch.bool), None
    if not hasattr(method, "score"):
        budget = Budget(ratio, pattern.n, pattern.m)
        return cast(UpdatingMethod, method).prune(view, [budget] * len(view.rows))
    method = cast(ScoringMethod, method)
    fresh = [torch.Generator().set_state(generator.get_state()) for generator in view.generators]
    score = method.score(replace(view, generators=tuple(fresh)))  # the same draws for every ratio
    if pattern.n is not None and pattern.m is not None:
        return select(score, (pattern.n, pattern.m)), None
    within = pattern.within or method.within
    if within == "row":
        return select(score, ratio, "row"), None
    return torch.cat([select(score[part], ratio, "matrix") for part in view.parts()]), None


def states(
    group: Sequence[LinearSite], view: LinearView, keep: Tensor, weight: Tensor | None
) -> dict[str, SiteState]:
    """The layers of a group as pruned; nothing is written to the model."""
    items = {}
    for site, part in zip(group, view.parts(), strict=True):
        own = (view.W if weight is None else weight)[part].to(view.W.dtype, copy=True)
        own = own.contiguous().masked_fill_(~keep[part], 0)
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
        site.linear.weight.masked_fill_(~keep[part], 0)
        masks[site.name] = Elementwise(keep[part].cpu().contiguous())
    return masks
