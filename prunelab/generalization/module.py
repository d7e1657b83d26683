"""Modules: units of one layer and kind that behave alike, ranked only among themselves. arXiv:2603.13418, step 1.

Which features and which clustering the paper uses is not public: both are our reconstruction. Modules are alike in
sensitivity *and* in magnitude, since whether a module's activations can be trusted is asked of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.generalization.sensitivity import Sensitivity

KMEANS, GRID, THRESHOLD = "kmeans", "grid", "threshold"
ROUNDS = 50  # of Lloyd's algorithm
FEWEST = 8  # units that are worth a division
_CONSTANT = 1e-12  # standard deviation of a feature, made of percentiles, that says nothing


@dataclass(frozen=True)
class Partition:
    """How units are divided. ``kind``: ``kmeans`` into ``modules`` clusters; ``grid``, quantile bins of sensitivity times
    bins of magnitude, ``bins`` of each; ``threshold``, at the quantile ``quantile`` of sensitivity.

    ``min_share`` and ``min_units``: modules of fewer units are joined with their nearest. ``weights``: of the features
    sensitivity, mean percentile, and profile over the datasets.
    """

    kind: Annotated[str, "kmeans | grid | threshold"]
    modules: int
    min_share: float
    min_units: int
    weights: tuple[float, float, float] = (1.0, 1.0, 0.5)
    bins: tuple[int, int] = (2, 2)
    quantile: float = 0.6


def features(found: Sensitivity, weights: tuple[float, float, float] = (1.0, 1.0, 0.5)) -> Tensor:
    """Return (m, 2 + D) float64: standardised ``v`` and ``u``, and how the percentile on each dataset differs from ``u``.

    The profile is divided by one standard deviation over all units and datasets, which keeps its shape. A feature
    that is constant over the layer counts as 0.
    """
    w_v, w_u, w_p = weights
    profile = found.ranks - found.u
    scale = profile.std(correction=0)
    profile = profile / scale if float(scale) > _CONSTANT else torch.zeros_like(profile)
    return torch.cat(
        [w_v * _standardised(found.v)[:, None], w_u * _standardised(found.u)[:, None], w_p * profile.T], 1
    )


def partition(found: Sensitivity, how: Partition) -> Tensor:
    """Return the module (m,) int64 of every unit, 0 the least sensitive; the same for the same units on every run.

    With fewer than 8 units there is one module. Raises ConfigError for an unknown kind or a number below 1.
    """
    m = found.v.numel()
    if how.modules < 1 or min(how.bins) < 1:
        raise ConfigError("modules", min(how.modules, *how.bins), "1 or more")
    if how.kind not in (KMEANS, GRID, THRESHOLD):
        raise ConfigError("partition", how.kind, f"{KMEANS} | {GRID} | {THRESHOLD}")
    if m < FEWEST:
        return torch.zeros(m, dtype=torch.int64, device=found.v.device)
    points = features(found, how.weights)
    if how.kind == KMEANS:
        labels = kmeans(points, _order(found), min(how.modules, m))
    elif how.kind == GRID:
        labels = _bins(found.v, how.bins[0]) * how.bins[1] + _bins(found.a, how.bins[1])
    else:
        labels = (found.v > sensitivity_threshold(found.v, how.quantile)).to(torch.int64)
    least = max(math.ceil(how.min_share * m), how.min_units)
    return _renumbered(merged(labels, points, least), found)


def sensitivity_threshold(v: Tensor, quantile: float) -> float:
    """Return the quantile of the sensitivities ``v`` (m,) above which units count as sensitive."""
    return float(torch.quantile(v, quantile))


def means(values: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of ``values`` (m,) in each module, (K,) float64."""
    n = int(labels.max()) + 1
    sums = torch.zeros(n, dtype=torch.float64, device=values.device).index_add_(0, labels, values.double())
    return sums / torch.bincount(labels, minlength=n)


def _standardised(x: Tensor) -> Tensor:
    scale = x.std(correction=0)
    return (x - x.mean()) / scale if float(scale) > _CONSTANT else torch.zeros_like(x)


def _order(found: Sensitivity) -> Tensor:
    """Units by sensitivity; where that is equal by mean percentile, then by index."""
    by_mean = torch.argsort(found.u, stable=True)
    return by_mean[torch.argsort(found.v[by_mean], stable=True)]


def kmeans(points: Tensor, order: Tensor, k: int) -> Tensor:
    """Return the cluster (n,) of each of ``points`` (n, d): Lloyd's algorithm from those at the middles of k equal shares of
    ``order`` (n,); ties go to the lower cluster."""
    starts = [int((j + 0.5) / k * len(order)) for j in range(k)]
    centres = points[order[starts]]
    labels = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    for _ in range(ROUNDS):
        new = (points[:, None] - centres[None]).square().sum(2).argmin(1)
        if torch.equal(new, labels):
            break
        labels = new
        for j in range(k):
            mine = points[labels == j]
            centres[j] = mine.mean(0) if len(mine) else centres[j]
    return labels


def _bins(x: Tensor, n: int) -> Tensor:
    """The quantile bin of every value; equal values share one, the lower."""
    edges = torch.quantile(x, torch.arange(1, n, dtype=x.dtype, device=x.device) / n)
    return torch.bucketize(x, edges)


def merged(labels: Tensor, points: Tensor, least: int) -> Tensor:
    """Return ``labels`` (n,) of ``points`` (n, d) once the smallest is joined with that of the nearest centre until none has
    fewer than ``least`` or one is left."""
    labels = labels.clone()
    while True:
        names, counts = torch.unique(labels, return_counts=True)
        smallest = int(counts.argmin())
        if len(names) == 1 or int(counts[smallest]) >= least:
            return labels
        centres = torch.stack([points[labels == name].mean(0) for name in names])
        distances = (centres - centres[smallest]).square().sum(1)
        distances[smallest] = math.inf
        labels[labels == names[smallest]] = names[int(distances.argmin())]


def _renumbered(labels: Tensor, found: Sensitivity) -> Tensor:
    """Number the modules by mean sensitivity, then mean percentile; what is empty vanishes."""
    _, place = torch.unique(labels, return_inverse=True)
    v, u = means(found.v, place).tolist(), means(found.u, place).tolist()
    ranks = {j: rank for rank, j in enumerate(sorted(range(len(v)), key=lambda j: (v[j], u[j], j)))}
    return torch.tensor([ranks[j] for j in range(len(v))], device=labels.device)[place]
