"""Biases that a repair adds to linear layers which have none, and takes away with the dense weights' return.

The bias of FLAP (arXiv:2312.11983) and of its kin stands in for what removed units gave on average: a Llama-like
model's output maps, of attention and MLP, have no bias for it. An added bias is a parameter as any other; that it is
none of the dense model's is remembered at the layer, which a copy of the model takes along.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from prunelab.family import Family

_MARK = "bias_was_added"


def may_add(family: Family, path: str) -> bool:
    """Whether a state may add a bias to the layer at ``path`` of a block: it maps to the residual stream."""
    outputs = [] if family.attention is None else [family.attention[3]]
    return path in [*outputs, *([] if family.mlp is None else [family.mlp[1]])]


def add(linear: nn.Linear, bias: Tensor | None = None) -> None:
    """Give ``linear``, which has none, the ``bias`` (R,) in its weight's dtype and place; None: zeros."""
    value = torch.zeros(linear.out_features) if bias is None else bias
    linear.bias = nn.Parameter(value.to(linear.weight, copy=True), requires_grad=False)
    setattr(linear, _MARK, True)


def remove(linear: nn.Linear) -> None:
    """Take an added bias away; a layer without one stays as it is."""
    if is_added(linear):
        linear.bias = cast(nn.Parameter, None)
        delattr(linear, _MARK)


def is_added(linear: nn.Linear) -> bool:
    """Whether the layer's bias is one that :func:`add` gave it."""
    return linear.bias is not None and bool(getattr(linear, _MARK, False))
