"""The influence of a block's attention and of its MLP apart: block influence (arXiv:2403.03853, eq. (1)) around each.

    attention: from x, what enters the block, to z, the residual stream between attention and MLP
    MLP:       from z to y, what leaves the block

z is what the block gives where its MLP adds nothing; in blocks that have attention and MLP side by side that is the
input and what the attention adds. The measure itself is in prunelab.stats.block_influence. Taking it around sub-layers is
a reconstruction: that paper measures whole blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.pattern.base import SUBLAYERS
from prunelab.stats.block_influence import Influence, InfluenceSum


@dataclass(frozen=True)
class Parts:
    """Both parts of a block."""

    attention: Influence
    ffn: Influence


class PartsSum:
    """Running sums of both, ``total`` (2, 2) float64: attention and MLP; cosine and angular."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._parts = tuple(InfluenceSum(device) for _ in SUBLAYERS)
        self.total = torch.zeros(2, 2, dtype=torch.float64, device=device)
        for one, own in zip(self._parts, self.total, strict=True):
            one.total = own  # a part of the whole, which is what is added over ranks
        self.n_tokens = 0

    def add(self, x: Tensor, z: Tensor, y: Tensor) -> None:
        """Add what enters, what is between and what leaves, each (n, seq_len, d), sequence by sequence."""
        for one, entering, leaving in zip(self._parts, (x, z), (z, y), strict=True):
            one.add(entering, leaving)
        self.n_tokens = self._parts[0].n_tokens

    def finish(self) -> Parts:
        """Return the means; zeros if there were no tokens."""
        means = (self.total / max(self.n_tokens, 1)).float().tolist()
        return Parts(*(Influence(*own) for own in means))


class SublayerInfluence:
    """Both influences of both parts of a block; its layers share the value."""

    name = "sublayer_influence"
    reads = "parts"

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> PartsSum:
        """Return an empty sum."""
        return PartsSum(device)

    def live(self, value: Parts) -> Tensor | None:
        """It says nothing of single entries."""
        return None

    def restrict(self, value: Parts, kept: Tensor) -> Parts:
        """The same: it is of the block's parts as wholes."""
        return value

    def is_finite(self, value: Parts) -> bool:
        """Whether every hidden state was finite."""
        return all(math.isfinite(number) for number in self.pack(value).tolist())

    def pack(self, value: Parts) -> Tensor:
        """Cosine and angular of the attention, then of the MLP, (4,) float32."""
        return torch.tensor([n for one in (value.attention, value.ffn) for n in (one.cosine, one.angular)])

    def unpack(self, stored: Tensor, width: int, name: str) -> Parts:
        """Both parts again."""
        if stored.shape != (4,):
            raise ValueError(f"shape (4,) is needed, it is {tuple(stored.shape)}")
        numbers = stored.tolist()
        return Parts(Influence(*numbers[:2]), Influence(*numbers[2:]))
