"""Sub-layer influence: whole attentions and MLPs that hardly change the residual stream go.

    I = mean_t (1 - cos(X[t], Y[t]))        X the residual stream that a sub-layer adds to, Y the stream with its part

The measure of ShortGPT (arXiv:2403.03853, eq. (1)) around each sub-layer instead of each block: a reconstruction, as that
paper removes whole blocks. ``sparsity.kinds=[attention]`` or ``[ffn]`` takes one kind alone; with both, the default, one
ranking compares them (``allocation=global``), or each kind loses its own share (``by_kind``). What goes adds nothing to the
stream and leaves nothing in its place. ``distance``, ``step``: as of prunelab.methods.shortgpt. What is measured, in blocks
with attention and MLP side by side too, is in prunelab.stats.sublayer_influence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.pattern.base import ATTENTION
from prunelab.stats.unit_view import UnitView


@dataclass(frozen=True)
class SublayerInfluence:
    """Importance of an attention or an MLP from the stream before and after it."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    distance: Annotated[str, "cosine | angular"]

    scope = "unit"
    needs = ("sublayer_influence",)
    supports = ("units",)
    units = ("attention", "ffn")
    kinds = ("attention", "ffn")
    allocation = "global"

    def importance(self, view: UnitView) -> Tensor:
        """Return the influence (1,) of the view's sub-layer, float64."""
        parts = view.value(view.output, "sublayer_influence")
        influence = parts.attention if view.kind == ATTENTION else parts.ffn
        value = influence.angular if self.distance == "angular" else influence.cosine
        return torch.tensor([value], dtype=torch.float64)
