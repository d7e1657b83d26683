"""Block influence: how far a block turns the hidden states that pass through it. Men et al. 2024, arXiv:2403.03853, eq. (1).

    cosine  = 1/N sum_n (1 - cos(x_n, y_n))        angular = 1/N sum_n arccos(cos(x_n, y_n)) / pi

x_n (d,) enters the block and y_n (d,) leaves it, residual included; what leaves the last block is taken before the final
norm. The published code sums over the tokens, which is the same order, and takes the diagonal of the (N, N) products of
all tokens with all others; here a token meets its own only. As in that code the cosine of a zero vector is 0.5.
Everything but the means is in float64, so that a block that changes nothing has exactly 0; the means are rounded to
float32, which hides in what order ranks and sequences were added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UNDEFINED = 0.5  # the cosine with a zero vector


@dataclass(frozen=True)
class Influence:
    """Means over all tokens, of float32's precision: ``cosine`` in [0, 2], ``angular`` in [0, 1]."""

    cosine: float
    angular: float


class InfluenceSum:
    """Running sums of both, (2,) float64."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(2, dtype=torch.float64, device=device)
        self.n_tokens = 0

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor) -> None:
        """Add what enters, ``x``, and what leaves, ``y``, both (n, seq_len, d), sequence by sequence."""
        for entering, leaving in zip(x, y, strict=True):
            cosine = cosines(entering, leaving)
            self.total[0] += (1 - cosine).sum()
            self.total[1] += cosine.arccos().sum() / math.pi
            self.n_tokens += len(entering)

    def finish(self) -> Influence:
        """Return the means; zeros if there were no tokens."""
        cosine, angular = (self.total / max(self.n_tokens, 1)).float().tolist()
        return Influence(cosine, angular)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine (tokens,) float64 of each row of ``x`` with that of ``y``, both (tokens, d); 1 for equal rows."""
    x, y = x.double(), y.double()
    dot = (x * y).sum(-1)
    # one root of the product: for equal rows it is their square to the last bit
    length = ((x * x).sum(-1) * (y * y).sum(-1)).sqrt()
    undefined = torch.full_like(dot, UNDEFINED)
    return torch.where(length == 0, undefined, (dot / length).clamp(-1, 1))


class BlockInfluence:
    """Both influences of a block; its layers share the value."""

    name = "block_influence"
    reads = "block"

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> InfluenceSum:
        """Return an empty sum."""
        return InfluenceSum(device)

    def live(self, value: Influence) -> Tensor | None:
        """It says nothing of single entries."""
        return None

    def restrict(self, value: Influence, kept: Tensor) -> Influence:
        """The same: it is of the block as a whole."""
        return value

    def is_finite(self, value: Influence) -> bool:
        """Whether every hidden state was finite."""
        return math.isfinite(value.cosine) and math.isfinite(value.angular)

    def pack(self, value: Influence) -> Tensor:
        """Both, (2,) float32."""
        return torch.tensor([value.cosine, value.angular])

    def unpack(self, stored: Tensor, width: int, name: str) -> Influence:
        """Both again."""
        if stored.shape != (2,):
            raise ValueError(f"shape (2,) is needed, it is {tuple(stored.shape)}")
        return Influence(*stored.tolist())
