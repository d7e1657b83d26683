"""How much a unit's rank depends on the text it was scored on. GPrune-LLM, arXiv:2603.13418, step 1.

The abstract says that units differ in how stable their rank is across datasets; the formulas are our reconstruction.
Scores ``S`` (D, m): of the m units of one layer and kind on D datasets, the main one first, all of the dense model.
Datasets differ in scale, so what is compared are percentile ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError

RANK_STD, RANK_RANGE, CV = "rank_std", "rank_range", "cv"
KINDS = (RANK_STD, RANK_RANGE, CV)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Of m units on D datasets, float64: ``ranks`` (D, m) percentiles within the layer, 0 to 1; ``v`` (m,) how much
    they spread over the datasets; ``u`` (m,) their mean; ``a`` (m,) that on the main dataset."""

    ranks: Tensor
    v: Tensor

    @property
    def u(self) -> Tensor:
        """Mean percentile over the datasets, (m,)."""
        return self.ranks.mean(0)

    @property
    def a(self) -> Tensor:
        """Percentile on the main dataset, (m,)."""
        return self.ranks[0]


def dead(scores: Tensor) -> Tensor:
    """Return which units (m,) bool score 0 on every dataset of ``scores`` (D, m).

    They go before all others and take part in nothing else: in a module of rarely firing units a metric of the weights
    would rescue them.
    """
    return (scores == 0).all(0)


def percentile_ranks(scores: Tensor) -> Tensor:
    """Return rank / (m - 1) along the last dimension, float64, same shape; ties get their average, a single unit 0.5.

    Raises ModelError for a score that is not a number.
    """
    if bool(torch.isnan(scores).any()):
        raise ModelError("scores of units hold NaN; check the statistics they were made from.")
    rows = scores.reshape(-1, scores.shape[-1])
    m = rows.shape[1]
    if m == 1:
        return torch.full(scores.shape, 0.5, dtype=torch.float64, device=scores.device)
    found = []
    for row in rows:
        _, place, counts = torch.unique(row, return_inverse=True, return_counts=True)
        first = counts.cumsum(0) - counts
        found.append((first + (counts - 1) / 2).to(torch.float64)[place] / (m - 1))
    return torch.stack(found).reshape(scores.shape)


def measure(scores: Tensor, *, kind: str = RANK_STD, halves: Tensor | None = None) -> Sensitivity:
    """Return the sensitivity of the units with ``scores`` (D, m) >= 0.

    ``kind``: ``rank_std`` (population standard deviation of the percentile over datasets, at most 0.5), ``rank_range``
    (largest minus smallest percentile) or ``cv`` (standard deviation over mean of the scores, each dataset's divided by
    their mean). ``halves`` (2, D, m): the scores on both halves of every dataset; the variance of sampling, a quarter of
    the mean squared difference of the two (which is that of an estimate from the whole), is taken off the squared
    spread; of a squared range, to which noise adds more, that is a part. Raises ConfigError for another kind.
    """
    if kind not in KINDS:
        raise ConfigError("sensitivity", kind, " | ".join(KINDS))
    ranks = percentile_ranks(scores)
    relative = kind == CV
    places, scale = _relative(scores) if relative else (ranks, torch.ones_like(ranks[0]))
    v = ranks.amax(0) - ranks.amin(0) if kind == RANK_RANGE else _spread(places) / scale
    if halves is not None:
        parts = _relative(halves)[0] if relative else percentile_ranks(halves)
        noise = (parts[0] - parts[1]).square().mean(0) / 4 / scale.square()
        v = (v.square() - noise).clamp(min=0).sqrt()
    return Sensitivity(ranks, v)


def joined(parts: Sequence[Sensitivity]) -> Sensitivity:
    """Return the units of several layers as one; percentiles stay those within each layer."""
    return Sensitivity(torch.cat([part.ranks for part in parts], 1), torch.cat([part.v for part in parts]))


def _spread(places: Tensor) -> Tensor:
    # from the first dataset on: identical datasets give exactly 0, whatever the rounding of their mean
    return (places - places[0]).std(0, correction=0)


def _relative(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores over each dataset's mean, and the mean of that over datasets (1 where it is 0)."""
    exact = scores.to(torch.float64)
    whole = exact.mean(-1, keepdim=True)
    relative = exact / torch.where(whole > 0, whole, 1.0)
    mean = relative.mean(-2)
    return relative, torch.where(mean > 0, mean, 1.0)
