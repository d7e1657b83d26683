"""Gram matrices of what enters and leaves a linear layer; both together are the Kronecker factors of its Fisher.

    A = (1/N) sum_n a_n a_n^T   (C, C)        G = (1/N) sum_n g_n g_n^T   (R, R)

over all N tokens of the calibration set, a_n the layer's input, g_n the gradient of the **sum** of the token
cross-entropies with respect to its output at token n, so that costs are nats per token. For ``y = W a`` the Fisher
block is taken as ``F = G (x) A`` (row-major vec; KFAC, as in arXiv:2312.17244). A is also SparseGPT's Hessian,
without its factor 2 (arXiv:2301.00774): damping is relative, so no choice depends on it. Where a pattern counts the
bias as a column, ``a = [a; 1]``. The last position of a sequence has no target and, attention being causal, no
gradient: it counts in A only. The published code divides the gradient by the sequence length, a constant that no
choice depends on. A product is taken per sequence, in float32, and added in float64: the sum depends neither on how
many sequences go through at a time nor, but for the last bit of a float64, on how ranks share them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunelab.linalg import factor

BLOCK = 256  # rows per product


class GramSum:
    """Running ``sum_n x_n x_n^T`` in float64; with ``ones`` every x_n gets a last entry 1.

    A Gram matrix is symmetric, so ``total`` holds, one after the other, bands of BLOCK rows from their first row's
    diagonal entry on: little more than half of a matrix, so the sum takes about the memory of the float32 value.
    """

    def __init__(
        self, width: int, *, ones: bool = False, device: torch.device | str = "cpu", name: str = "a layer"
    ) -> None:
        self.size, self.ones, self.name = width + ones, ones, name
        self.n_tokens = 0
        shapes = [(min(BLOCK, self.size - start), self.size - start) for start in range(0, self.size, BLOCK)]
        self.total = torch.zeros(sum(math.prod(s) for s in shapes), dtype=torch.float64, device=device)
        parts = self.total.split([math.prod(shape) for shape in shapes])
        self._bands = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add the tokens of ``x`` (n, seq_len, width), sequence by sequence."""
        for sequence in x.detach():
            tokens = sequence.float()
            for start, band in zip(range(0, self.size, BLOCK), self._bands, strict=True):
                left, right = tokens[:, start : start + BLOCK], tokens[:, start:]
                # add_, since += on a slice would copy it onto itself as well
                band[: left.shape[1], : right.shape[1]].add_(left.T @ right)
                if self.ones:  # that column is never built: its products are a sum and a count
                    band[: left.shape[1], -1].add_(left.sum(0))
            if self.ones:
                self.total[-1] += len(tokens)
            self.n_tokens += len(tokens)

    def merge(self, other: GramSum) -> None:
        """Add the tokens of another sum over the same width."""
        self.total += other.total.to(self.total.device)
        self.n_tokens += other.n_tokens

    def finish(self) -> Gram:
        """Return the average as a Gram; uses up the sum."""
        return Gram(self.mean(), self.name)

    def mean(self) -> Tensor:
        """Return the average over tokens, (C, C) float32; zeros if there were none. Uses up the sum."""
        mean = torch.empty(self.size, self.size, device=self.total.device)
        for start, band in zip(range(0, self.size, BLOCK), self._bands, strict=True):
            band.div_(max(self.n_tokens, 1))
            stop = start + len(band)
            mean[start:stop, start:] = band
            mean[stop:, start:stop] = mean[start:stop, stop:].T
            corner = mean[start:stop, start:stop]
            corner.copy_(corner.triu() + corner.triu(1).T)
        self.total, self._bands = self.total.new_empty(0), []
        return mean


@dataclass(frozen=True, eq=False)
class Gram:
    """A Gram matrix (n, n) float32 of one layer or of several with one input, with what was computed from it.

    ``name`` is for messages. Layers that share an input share the object, so q, k and v, or gate and up, pay for one
    factorisation.
    """

    matrix: Tensor
    name: str
    _diagonals: dict[float, Tensor] = field(default_factory=dict, repr=False)
    _factors: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def damped(self, damping: float) -> Tensor:
        """Return the damped matrix (n, n) float64: see :mod:`prunelab.linalg.factor`."""
        return factor.damped(self.matrix, damping)

    def inverse_diagonal(self, damping: float) -> Tensor:
        """Return the diagonal (n,) of the damped inverse, float64; kept for the next caller."""
        if damping not in self._diagonals:
            self._diagonals[damping] = factor.inverse_diagonal(self.damped(damping), self.name)
        return self._diagonals[damping]

    def inverse_factor(self, damping: float) -> tuple[Tensor, Tensor]:
        """Return U (n, n) float32, upper triangular with ``U^T U = (damped matrix)^-1``, and which entries are dead,
        (n,) bool; kept for the next caller."""
        if damping not in self._factors:
            U = factor.inverse_factor(self.damped(damping), self.name)
            self._factors[damping] = (U.float().contiguous(), self.matrix.diagonal() == 0)
        return self._factors[damping]


class _Gram:
    """What both Gram statistics have in common: their value is a Gram."""

    def live(self, value: Gram) -> Tensor | None:
        """Entries whose diagonal is not 0."""
        return value.matrix.diagonal() != 0

    def restrict(self, value: Gram, kept: Tensor) -> Gram:
        """Rows and columns of some entries; the same object where that is all of them."""
        if bool(kept.all()):
            return value
        return Gram(value.matrix[kept][:, kept], value.name)

    def is_finite(self, value: Gram) -> bool:
        """Whether the diagonal is finite: one bad number reaches it."""
        return bool(torch.isfinite(value.matrix.diagonal()).all())

    def pack(self, value: Gram) -> Tensor:
        """The matrix."""
        return value.matrix

    def unpack(self, stored: Tensor, width: int, name: str) -> Gram:
        """The matrix with nothing computed from it."""
        if stored.shape != (width, width):
            raise ValueError(f"shape ({width}, {width}) is needed, it is {tuple(stored.shape)}")
        return Gram(stored, name)


class InputGram(_Gram):
    """A (C, C), or (C + 1, C + 1) with the bias' input as last entry."""

    name = "input_gram"
    reads = "input"

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> GramSum:
        """Return an empty sum."""
        return GramSum(width, ones=ones, device=device, name=f"{name} (input)")


class OutputGram(_Gram):
    """G (R, R)."""

    name = "output_gram"
    reads = "output_gradient"

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> GramSum:
        """Return an empty sum; an output has no bias' input."""
        return GramSum(width, device=device, name=f"{name} (output)")
