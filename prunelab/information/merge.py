"""A removed neuron's part, given to the neuron that says the same. arXiv:2406.00030 prunes without retraining; whether
its survivors are changed is not public, so this compensation is a reconstruction.

On raw activations of all calibration tokens, ``z_x ~ beta z_p + gamma`` by least squares, and the output map

    W[:, p] += beta W[:, x]        b += gamma W[:, x]        W[:, x] = 0

The mean squared error of the layer's output when one neuron goes is ``||W[:, x]||^2 E(z_x - beta z_p - gamma)^2``: no
larger than without (beta = gamma = 0), and 0 for an affine copy. Information does not see the shape of a dependence and
a merge is linear: where the share ``r2`` of z_x's variance that z_p explains is small, only the mean is given
(``beta = 0, gamma = E z_x``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """``mean`` (C,) and ``second`` (C, C), E[z z^T], of raw activations over all calibration tokens."""

    mean: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False)
class Merged:
    """``W`` (R, C) float64 with removed columns 0, ``bias`` (R,) float64, and per removed neuron ``beta``, ``gamma`` and
    ``r2`` (q,) float64; beta is 0 where only the mean was given."""

    W: Tensor
    bias: Tensor
    beta: Tensor
    gamma: Tensor
    r2: Tensor


def moments_of(Z: Tensor) -> Moments:
    """Return the moments of samples ``Z`` (n, C), in float64."""
    exact = Z.double()
    return Moments(exact.mean(0), exact.T @ exact / len(exact))


def merge(
    W: Tensor, bias: Tensor | None, moments: Moments, removed: Tensor, partner: Tensor, min_r2: float
) -> Merged:
    """Give the columns ``removed`` (q,) int64 of the output map ``W`` (R, C) to their partners.

    ``partner`` (q,) int64: a column that stays, or -1: only the mean moves into the bias. ``bias`` (R,) or None, then
    taken as 0: the result always has one. Below ``min_r2`` only the mean is given; 0 merges everything.
    """
    mean, second = moments.mean.double(), moments.second
    alone = partner < 0
    p = partner.clamp(min=0)
    variance = (second[removed, removed].double() - mean[removed] ** 2).clamp(min=0)
    explaining = (second[p, p].double() - mean[p] ** 2).clamp(min=0)
    covariance = second[removed, p].double() - mean[removed] * mean[p]
    usable = ~alone & (explaining > 0) & (variance > 0)
    slope = torch.where(usable, covariance / explaining.masked_fill(~usable, 1.0), 0.0)
    r2 = torch.where(usable, slope * covariance / variance.masked_fill(~usable, 1.0), 0.0).clamp(0, 1)
    beta = torch.where(r2 >= min_r2, slope, 0.0)
    gamma = mean[removed] - beta * mean[p]
    exact = W.double()
    gone = exact[:, removed]
    new_bias = gone @ gamma
    if bias is not None:
        new_bias += bias.double()
    new = exact.clone().index_add_(1, p, gone * beta)
    new[:, removed] = 0
    return Merged(new, new_bias, beta, gamma, r2)
