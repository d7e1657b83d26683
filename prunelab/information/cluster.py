"""Clusters of neurons, inside which pairs are looked for: arXiv:2406.00030's way to save time on wide layers.

How the paper clusters is not public. Here: k-means of the standardised columns on the sphere, up to sign, since
information does not change with it: a neuron belongs to the centre with the largest ``|z . c|``, and a centre is the
mean of its members, each with the sign that points its way. Costs fall from ``m^2`` to about ``m^2 / n_clusters``; a
pair that only depends nonlinearly may end up apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.information.pairs import Estimator
from prunelab.information.search import Blocks, Neurons, Removals, greedy

PER_CLUSTER = 64  # neurons, on average
ROUNDS = 25


def cluster(Z: Tensor, n_clusters: int, generator: torch.Generator) -> list[Tensor]:
    """Return the columns of ``Z`` (n, m), centred and none of them 0, in at most ``n_clusters`` groups of numbers.

    Every group is sorted and has a member. ``generator`` picks the first centres among the columns.
    """
    m = Z.shape[1]
    if not 1 <= n_clusters <= m:
        raise ConfigError(
            "method.n_clusters", n_clusters, f"an integer, 1 <= x <= {m} neurons that are not dead"
        )
    unit = Z.double() / torch.linalg.vector_norm(Z.double(), dim=0)
    chosen = torch.randperm(m, generator=generator)[:n_clusters].to(Z.device)
    centres = unit[:, chosen]
    label = torch.full((m,), -1, device=Z.device)
    for _ in range(ROUNDS):
        similarity = centres.T @ unit  # (clusters, m)
        nearest = similarity.abs().argmax(0)
        if torch.equal(nearest, label):
            break
        label = nearest
        sign = similarity.gather(0, label[None])[0].sign()
        sums = torch.zeros_like(centres).index_add_(1, label, unit * sign)
        length = torch.linalg.vector_norm(sums, dim=0)
        # a centre that lost its members stays where it was
        centres = torch.where(length > 0, sums / length.clamp(min=1e-300), centres)
    groups = [(label == number).nonzero()[:, 0] for number in range(n_clusters)]
    return [group for group in groups if len(group)]


def clustered(
    estimator: Estimator,
    neurons: Neurons,
    count: int,
    generator: torch.Generator,
    *,
    n_clusters: int | None = None,
    floor: float = -1.0,
    threshold: float | None = None,
) -> Removals:
    """Remove ``count`` neurons greedily over the pairs inside clusters; ``n_clusters`` None = m / 64, rounded up.

    When every cluster is down to one neuron no pair is left, and the rest is a shortfall.
    """
    live = neurons.live
    if not len(live):
        return greedy(Blocks([], []), neurons, count, generator, floor=floor, threshold=threshold)
    wanted = math.ceil(len(live) / PER_CLUSTER) if n_clusters is None else n_clusters
    groups = [live[group] for group in cluster(neurons.columns[:, live], wanted, generator)]
    matrices = [estimator.matrix(neurons.columns[:, group]) for group in groups]
    return greedy(Blocks(groups, matrices), neurons, count, generator, floor=floor, threshold=threshold)
