"""Pseudo-domains: one calibration set divided into sets of like sequences, where no other text is given. arXiv:2603.13418.

The paper compares several texts; that sequences of one may take their place, clustered by k-means on the mean of their
final hidden states, is a reconstruction. A cluster has at least two sequences, since each text is compared by halves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.generalization.module import kmeans, merged

LEAST = 2  # sequences of a set


def clusters(points: Tensor, k: int) -> list[Tensor]:
    """Return the numbers, sorted int64, of the sequences of each cluster of ``points`` (n, d) float64: 2 to ``k`` of them.

    Lloyd's algorithm from the middles of k equal shares along the direction of most variance: the same on every run. A
    sequence alone joins the nearest cluster; where that leaves a single one, such sequences are left out at first.
    Raises ModelError where there is a single cluster even so.
    """
    inside = torch.arange(len(points), device=points.device)
    while len(inside) >= 2 * LEAST:
        rest = points[inside]
        labels = kmeans(rest, _order(rest), min(k, len(rest)))
        joined = merged(labels, rest, LEAST)
        if len(joined.unique()) > 1:
            return _all_of(points, inside, joined)
        lone = torch.bincount(labels)[labels] < LEAST
        if not bool(lone.any()):
            break
        inside = inside[~lone]
    raise ModelError(
        "the calibration sequences are all alike: no two sets of them differ. Take more (calibration.n_samples), "
        "or name other text in domains."
    )


def _all_of(points: Tensor, inside: Tensor, labels: Tensor) -> list[Tensor]:
    """The clusters that ``labels`` of the points ``inside`` make, and all others with the nearest."""
    names = labels.unique()
    centres = torch.stack([points[inside[labels == name]].mean(0) for name in names])
    place = (points[:, None] - centres[None]).square().sum(2).argmin(1)
    place[inside] = torch.searchsorted(names, labels)
    found = [(place == at).nonzero()[:, 0] for at in range(len(names))]
    return sorted(found, key=lambda members: int(members[0]))


def _order(points: Tensor) -> Tensor:
    """Numbers of ``points`` (n, d) along the direction of most variance."""
    centred = points - points.mean(0)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    direction = direction * direction[direction.abs().argmax()].sign()  # of two directions the same one
    return torch.argsort(centred @ direction, stable=True)
