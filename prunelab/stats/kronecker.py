"""Kronecker factors of the Fisher of a linear layer, per token (KFAC, as in arXiv:2312.17244).

For a layer ``y = W a`` the Fisher block is taken as ``F = G (x) A`` (row-major vec) with

    A = (1/N) sum_n a_n a_n^T   (C, C)        G = (1/N) sum_n g_n g_n^T   (R, R)

over all N tokens of the calibration set. With a bias, ``a = [a; 1]``. ``g_n`` is the gradient of the **sum**
of the token cross-entropies with respect to the layer's output at token n, so that costs are nats per token.
The last position of a sequence has no target and, attention being causal, no gradient: it counts in A only.
The published code divides the gradient by the sequence length, a constant that no choice depends on. Sums are
float32: one product per batch of tokens, then added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factors:
    """Averages of one layer: A (C, C) or None, G (R, R) or None, both float32; n_tokens they were taken over.

    Layers that see the same input hold the same tensor object A.
    """

    A: Tensor | None
    G: Tensor | None
    n_tokens: int


BLOCK = 256  # columns per product


class GramSum:
    """Running ``sum_n x_n x_n^T`` in float32; with ``ones`` every x_n gets a last entry 1.

    ``total`` is valid on and above the diagonal blocks only; ``mean`` fills the rest."""

    def __init__(self, width: int, *, ones: bool = False, device: torch.device | str = "cpu") -> None:
        size = width + ones
        self.ones = ones
        self.n_tokens = 0
        self.total = torch.zeros(size, size, dtype=torch.float32, device=device)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add the tokens of ``x`` (..., width)."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        width = x.shape[1]
        # the column of ones is never built: its products are a sum and a count
        for start in range(0, width, BLOCK):  # a Gram is symmetric: only blocks on and above the diagonal
            block = slice(start, min(start + BLOCK, width))
            self.total[block, start:width].addmm_(x[:, block].T, x[:, start:])
        if self.ones:
            column = x.sum(0)
            self.total[:width, width] += column
            self.total[width, width] += x.shape[0]
        self.n_tokens += x.shape[0]

    def merge(self, other: GramSum) -> None:
        """Add the tokens of another sum over the same width."""
        self.total += other.total.to(self.total.device)
        self.n_tokens += other.n_tokens

    def mean(self) -> Tensor:
        """Return the average over tokens, (C, C) float32; zeros if there were none. Uses up the sum."""
        self.total.div_(max(self.n_tokens, 1))
        for start in range(0, self.total.shape[0], BLOCK):
            stop = min(start + BLOCK, self.total.shape[0])
            self.total[stop:, start:stop] = self.total[start:stop, stop:].T
            corner = self.total[start:stop, start:stop]
            corner.copy_(corner.triu() + corner.triu(1).T)
        return self.total
