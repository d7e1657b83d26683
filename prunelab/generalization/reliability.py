"""Which modules' activations cannot be trusted, and the scores that stand in their place. arXiv:2603.13418, step 2.

The abstract judges a module by its sensitivity and the magnitude of its scores and switches an unreliable one to a metric
that does not depend on activations. Thresholds are our reconstruction. Scores of different modules are never compared,
so that metrics may be mixed as they are.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.generalization.module import means, sensitivity_threshold
from prunelab.generalization.sensitivity import Sensitivity, percentile_ranks

SENS_AND_MAG, RANK_CONSISTENCY, NONE, ALL = "sens_and_mag", "rank_consistency", "none", "all"
RULES = (SENS_AND_MAG, RANK_CONSISTENCY, NONE, ALL)
_ROUNDING = 1e-12  # a mean of equal values is not above them


def unreliable(
    found: Sensitivity, labels: Tensor, *, rule: str = SENS_AND_MAG, quantile: float = 0.6,
    magnitude: float = 0.4, consistency: float = 0.5,
) -> Tensor:  # fmt: skip
    """Return which modules (K,) bool of ``labels`` (m,) are to be ranked without activations.

    ``sens_and_mag``: mean sensitivity above the layer's ``quantile`` and mean percentile on the main dataset below
    ``magnitude``; ``rank_consistency``: mean rank correlation between datasets inside the module below
    ``consistency``; ``none`` and ``all`` are ablations. Raises ConfigError for another rule.
    """
    if rule not in RULES:
        raise ConfigError("reliability", rule, " | ".join(RULES))
    n = int(labels.max()) + 1
    if rule == SENS_AND_MAG:
        V, A = means(found.v, labels), means(found.a, labels)
        limit = sensitivity_threshold(found.v, quantile) + _ROUNDING
        return V.gt(limit) & A.lt(magnitude)
    if rule == RANK_CONSISTENCY:
        agreed = [rank_consistency(found.ranks[:, labels == j]) for j in range(n)]
        return torch.tensor([value < consistency for value in agreed], device=labels.device)
    return torch.full((n,), rule == ALL, device=labels.device)


def rank_consistency(scores: Tensor) -> float:
    """Return the mean Spearman correlation of ``scores`` (D, n) over all pairs of datasets.

    1 where there is nothing to order or to compare; a pair counts 0 if one of its datasets orders nothing.
    """
    if scores.shape[1] < 2 or len(scores) < 2:
        return 1.0
    ranks = percentile_ranks(scores)
    ranks = ranks - ranks.mean(1, keepdim=True)
    norms = ranks.square().sum(1).sqrt()
    found = []
    for one, other in combinations(range(len(ranks)), 2):
        scale = float(norms[one] * norms[other])
        found.append(float(ranks[one] @ ranks[other]) / scale if scale > _ROUNDING else 0.0)
    return sum(found) / len(found)


def module_scores(base: Tensor, fallback: Tensor, labels: Tensor, switched: Tensor) -> Tensor:
    """Return (m,) float64: ``fallback`` in modules that ``switched`` (K,) says, elsewhere ``base``."""
    return torch.where(switched[labels], fallback.double(), base.double())


def module_percentiles(scores: Tensor, labels: Tensor) -> Tensor:
    """Return (rank + 0.5) / n inside each module, (m,) float64: 0 is the worst; of equal scores the lower index first."""
    result = torch.empty(labels.shape, dtype=torch.float64, device=scores.device)
    for j in range(int(labels.max()) + 1):
        places = (labels == j).nonzero()[:, 0]
        order = torch.argsort(scores[places], stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        result[places] = (rank.double() + 0.5) / max(len(order), 1)
    return result
