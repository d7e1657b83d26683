"""LinearSite: one prunable linear map of a block, by the names a checkpoint gives it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class LinearSite:
    """One linear map of one block.

    ``linear.weight`` is (R, C): R output features, C input features. ``name`` is the full module
    path and so the checkpoint's prefix (``model.layers.0.self_attn.q_proj``); ``path`` is the part
    inside the block (``self_attn.q_proj``). Sites of one block with equal ``shared`` see the same
    input tensor (q, k, v; gate, up), so statistics of that input are collected once.
    """

    name: str
    path: str
    block: int
    shared: int
    linear: nn.Linear
