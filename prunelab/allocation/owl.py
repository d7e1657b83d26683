"""OWL: blocks with more outliers keep more. Yin et al., ICML 2024, arXiv:2310.05175, sections 3.2 and 3.3.

A block's outlier share is the fraction of its scores ``|W_rc| ||x_c||`` above ``threshold`` times their mean,
taken on the dense model over all its layers at once. Shares are scaled to [0, 2 spread] and centred; that is
what a block keeps on top of the average. All blocks being equally large, the mean ratio is the one asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.errors import ConfigError


@dataclass(frozen=True)
class OWL:
    """``threshold``: M of the paper, 5 at 70 % unstructured; ``spread``: lambda, 0.08."""

    name: str
    revision: int
    threshold: Annotated[float, "x > 0"]
    spread: Annotated[float, "0 <= x < 0.5"]

    def share(self, scores: Sequence[Tensor]) -> float:
        """Return the outlier share of a block, 0 to 1, from its layers' scores (R, C)."""
        count = sum(score.numel() for score in scores)
        mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / count
        return sum(int((score > self.threshold * mean).sum()) for score in scores) / count

    def ratios(self, shares: Sequence[float], ratio: float) -> list[float]:
        """Return the removed fraction of every block; ConfigError if one would leave [0, 1)."""
        low, high = min(shares), max(shares)
        if high == low or ratio == 0:
            return [ratio] * len(shares)
        scaled = [2 * self.spread * (share - low) / (high - low) for share in shares]
        mean = sum(scaled) / len(scaled)
        found = [ratio - (value - mean) for value in scaled]
        if min(found) < 0 or max(found) >= 1:
            raise ConfigError(
                "allocation.spread",
                self.spread,
                f"so small that every block's ratio stays in [0, 1); they run from {min(found):.3f} to "
                f"{max(found):.3f} around {ratio:g}",
            )
        return found
