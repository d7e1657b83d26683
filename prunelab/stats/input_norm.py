"""The norm of every input channel: ``norm_c = sqrt(1/N sum_n x_nc^2)`` (C,), over all N tokens.

Published codes sum over the tokens of a sequence instead of averaging; no choice depends on that, because scores
are compared with each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NormSum:
    """Running sum of squares of every channel, float64 (C,): a sequence at a time, so that batches do not matter."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.n_tokens = 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add the tokens of ``x`` (n, seq_len, width), sequence by sequence."""
        for sequence in x:
            # float32 inside a sequence also for bfloat16 inputs, without a float32 copy of them
            self.total += torch.linalg.vector_norm(sequence, dim=0, dtype=torch.float32).double().square_()
            self.n_tokens += len(sequence)

    def finish(self) -> Tensor:
        """Return the root mean square of every channel, (C,) float32."""
        return (self.total / max(self.n_tokens, 1)).sqrt().float()


class InputNorm:
    """Root mean square of every input channel, (C,) float32."""

    name = "input_norm"
    reads = "input"

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> NormSum:
        """Return an empty sum; a bias' input has no norm here."""
        return NormSum(width, device)

    def live(self, value: Tensor) -> Tensor | None:
        """Channels that were ever different from 0."""
        return value != 0

    def restrict(self, value: Tensor, kept: Tensor) -> Tensor:
        """Norms of some channels; of a bias' input there is none."""
        return value[kept[: value.numel()]]

    def is_finite(self, value: Tensor) -> bool:
        """Whether all norms are finite."""
        return bool(torch.isfinite(value).all())

    def pack(self, value: Tensor) -> Tensor:
        """The norms themselves."""
        return value

    def unpack(self, stored: Tensor, width: int, name: str) -> Tensor:
        """The norms themselves."""
        if stored.shape != (width,):
            raise ValueError(f"shape ({width},) is needed, it is {tuple(stored.shape)}")
        return stored
