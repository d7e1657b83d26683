"""Mean and variance of every input channel over all calibration tokens.

    mean_c = 1/N sum_n x_nc        variance_c = 1/(N - 1) sum_n (x_nc - mean_c)^2

Sums of x and x^2 are in float64, which add over sequences and ranks; a channel whose mean is a thousand times its
deviation still has nine digits of its variance. The published code of arXiv:2312.11983 updates its running mean in place
and then takes it for the old one, which makes the first sample's share of the variance zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """``mean`` and ``variance`` (C,) float32."""

    mean: Tensor
    variance: Tensor


class MomentSum:
    """Running sums of x and of x^2, (2, C) float64."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(2, width, dtype=torch.float64, device=device)
        self.n_tokens = 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add the tokens of ``x`` (n, seq_len, width), sequence by sequence."""
        for sequence in x:
            tokens = sequence.double()
            self.total[0] += tokens.sum(0)
            self.total[1] += tokens.square().sum(0)
            self.n_tokens += len(sequence)

    def finish(self) -> Moments:
        """Return mean and variance; zeros if there were no tokens."""
        n = max(self.n_tokens, 1)
        mean = self.total[0] / n
        variance = (self.total[1] - n * mean.square()).clamp_min(0) / max(n - 1, 1)
        return Moments(mean.float(), variance.float())


class InputMoments:
    """Mean and variance of every input channel."""

    name = "input_moments"
    reads = "input"

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> MomentSum:
        """Return an empty sum; a bias' input has no moments here."""
        return MomentSum(width, device)

    def live(self, value: Moments) -> Tensor | None:
        """Channels that were ever different from 0."""
        return (value.mean != 0) | (value.variance != 0)

    def restrict(self, value: Moments, kept: Tensor) -> Moments:
        """Moments of some channels; of a bias' input there are none."""
        kept = kept[: value.mean.numel()]
        return Moments(value.mean[kept], value.variance[kept])

    def is_finite(self, value: Moments) -> bool:
        """Whether all are finite."""
        return bool(torch.isfinite(value.mean).all() and torch.isfinite(value.variance).all())

    def pack(self, value: Moments) -> Tensor:
        """Both, (2, C)."""
        return torch.stack([value.mean, value.variance])

    def unpack(self, stored: Tensor, width: int, name: str) -> Moments:
        """Both again."""
        if stored.shape != (2, width):
            raise ValueError(f"shape (2, {width}) is needed, it is {tuple(stored.shape)}")
        return Moments(stored[0], stored[1])
