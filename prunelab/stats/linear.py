"""What a method on single weights sees: all linear layers that share one input, their rows stacked.

The input's statistics are collected once for the group (q, k and v; gate and up), and a method that inverts
them does so once. Normalisation: per token, over all N tokens of the calibration set,

    norm_c = sqrt(1/N sum_n x_nc^2)   (C,)        H = 1/N sum_n x_n x_n^T   (C, C)

Published codes sum over the tokens of a sequence and may carry a factor 2; no choice depends on either,
because scores are compared with each other and damping is relative.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunelab.errors import ModelError


class NormSum:
    """Running sum of squares of every input channel, float64 (C,)."""

    def __init__(self, width: int, *, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.n_tokens = 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add the tokens of ``x`` (..., width)."""
        x = x.reshape(-1, x.shape[-1])
        # float32 inside a batch also for bfloat16 inputs, without a float32 copy of them
        self.total += torch.linalg.vector_norm(x, dim=0, dtype=torch.float32).double().square_()
        self.n_tokens += x.shape[0]

    def finish(self) -> Tensor:
        """Return the root mean square of every channel, (C,) float32."""
        return (self.total / max(self.n_tokens, 1)).sqrt().float()


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What was collected of one input: ``norm`` (C,) and ``gram`` = H (C, C), float32; None = not asked for."""

    norm: Tensor | None
    gram: Tensor | None


@dataclass(frozen=True, eq=False)
class Hessian:
    """``H`` (C, C) float32 of a group's input, with the inverse factors already computed from it."""

    matrix: Tensor
    name: str
    _factors: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def inverse_factor(self, damping: float) -> tuple[Tensor, Tensor]:
        """Return U (C, C) float32, upper triangular with ``U^T U = (H + damping mean(diag) I)^-1``, and
        which inputs are dead, (C,) bool; kept for the next caller.

        A dead input (``H_cc = 0``) gets diagonal 1 and no coupling; the mean is over live inputs, so that
        the scale of H does not matter. One Cholesky factorisation in float64: with the order of the inputs
        reversed, ``H = V V^T`` for an upper triangular V, and U is its inverse.
        """
        if damping not in self._factors:
            self._factors[damping] = _inverse_factor(self.matrix, damping, self.name)
        return self._factors[damping]


def _inverse_factor(matrix: Tensor, damping: float, name: str) -> tuple[Tensor, Tensor]:
    H = matrix.to(torch.float64, copy=True)
    diagonal = H.diagonal()
    dead = diagonal == 0
    live = ~dead
    mean = diagonal[live].mean() if bool(live.any()) else diagonal.new_ones(())
    diagonal += torch.where(dead, 1.0, damping * mean)
    lower, info = torch.linalg.cholesky_ex(H.flip(0, 1))
    if int(info) != 0:
        raise ModelError(
            f"{name}: the damped Hessian ({H.shape[0]} wide) is not positive definite (pivot {int(info)}). "
            "Raise method.damping (0.01 is usual) or calibrate on more tokens."
        )
    return _inverse_of_lower(lower).flip(0, 1).float().contiguous(), dead


def _inverse_of_lower(lower: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix by halves: products instead of a solve against the identity."""
    n = lower.shape[0]
    if n <= 192:
        identity = torch.eye(n, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    half = n // 2
    inverse = torch.zeros_like(lower)
    inverse[:half, :half] = _inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse


@dataclass(frozen=True, eq=False)
class LinearView:
    """The layers of one input group: ``W`` (R, C) in the model's dtype, rows of layer 0 first.

    ``names`` and ``rows``: layers and how many of the rows each has. ``norm`` (C,) float32 and ``hessian``
    are None unless the method's ``needs`` name 'input_norm', 'input_gram'. ``generators``: one per layer,
    seeded by (seed, layer), on the CPU.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    W: Tensor
    norm: Tensor | None
    hessian: Hessian | None
    generators: tuple[torch.Generator, ...]

    @property
    def input_norm(self) -> Tensor:
        """``norm`` (C,); ModelError if it was not collected."""
        if self.norm is None:
            raise ModelError(f"{self.names[0]}: add 'input_norm' to the method's needs.")
        return self.norm

    @property
    def input_hessian(self) -> Hessian:
        """``hessian``; ModelError if it was not collected."""
        if self.hessian is None:
            raise ModelError(f"{self.names[0]}: add 'input_gram' to the method's needs.")
        return self.hessian

    def parts(self) -> Iterator[slice]:
        """The rows of each layer."""
        start = 0
        for count in self.rows:
            yield slice(start, start + count)
            start += count


def site_generator(seed: int, name: str, shot: int) -> torch.Generator:
    """Return the generator of one layer and shot, on the CPU; the same for the same arguments anywhere."""
    digest = hashlib.sha256(f"{seed}/{name}/{shot}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
