"""A removed neuron's part, given to those that say the same. arXiv:2406.00030 prunes without retraining; whether its
survivors are changed is not public, so these compensations are reconstructions.

On raw activations of all calibration tokens, :func:`merge` has ``z_x ~ beta z_p + gamma`` by least squares, and the output map

    W[:, p] += beta W[:, x]        b += gamma W[:, x]        W[:, x] = 0

The mean squared error of the layer's output when one neuron goes is ``||W[:, x]||^2 E(z_x - beta z_p - gamma)^2``: no
larger than without (beta = gamma = 0), and 0 for an affine copy. Information does not see the shape of a dependence and
a merge is linear: where the share ``r2`` of z_x's variance that z_p explains is small, only the mean is given
(``beta = 0, gamma = E z_x``), or nothing.

:func:`merge_jointly` fits ``z_x ~ beta . z_P + gamma`` with P the partners of all removed neurons, those that stay: no
neuron's residual is larger than pairwise, and it is still the partners alone that change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.linalg.regression import regression

PAIRWISE, JOINT = "pairwise", "joint"
MEAN, NOTHING = "mean", "nothing"  # what is given of a neuron below the least r2
EPS = 1e-6  # of the partners' mean variance: float32 moments of near copies would not be positive definite


@dataclass(frozen=True, eq=False)
class Moments:
    """``mean`` (C,) and ``second`` (C, C), E[z z^T], of raw activations over all calibration tokens."""

    mean: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False)
class Merged:
    """``W`` (R, C) float64 with removed columns 0, ``bias`` (R,) float64, and per removed neuron ``beta``, ``gamma`` and
    ``r2`` (q,) float64; beta is 0 where only the mean was given, or nothing: then gamma is 0 as well. Of a joint merge
    beta is (q, p), over the p partners by number."""

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
    W: Tensor,
    bias: Tensor | None,
    moments: Moments,
    removed: Tensor,
    partner: Tensor,
    min_r2: float,
    unmerged: str = MEAN,
) -> Merged:
    """Give the columns ``removed`` (q,) int64 of the output map ``W`` (R, C) to their partners.

    ``partner`` (q,) int64: a column that stays, or -1: only the mean moves into the bias. ``bias`` (R,) or None, then
    taken as 0: the result always has one. Below ``min_r2`` the mean is given, or with ``unmerged=nothing`` that neither; 0
    merges everything.
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
    merged = r2 >= min_r2
    beta = torch.where(merged, slope, 0.0)
    gamma = torch.where(merged | alone | (unmerged == MEAN), mean[removed] - beta * mean[p], 0.0)
    gone = W.double()[:, removed]
    return _given(W, bias, removed, p, gone * beta, gone @ gamma, (beta, gamma, r2))


def merge_jointly(
    W: Tensor,
    bias: Tensor | None,
    moments: Moments,
    removed: Tensor,
    alone: Tensor,
    partners: Tensor,
    min_r2: float,
    unmerged: str = MEAN,
) -> Merged:
    """Give the columns ``removed`` (q,) int64 of ``W`` (R, C) to all the columns ``partners`` (p,) int64, which stay.

    ``alone`` (q,) bool: of these only the mean moves into the bias, as without partners. The rest is as in :func:`merge`.
    """
    mean, second = moments.mean.double(), moments.second.double()
    covariance = second - torch.outer(mean, mean)
    variance = covariance[removed, removed].clamp(min=0)
    if len(partners):
        slope = regression(covariance, partners, removed, EPS).T  # (q, p)
        within, across = covariance[partners][:, partners], covariance[removed][:, partners]
        explained = 2 * (slope * across).sum(1) - ((slope @ within) * slope).sum(1)
    else:
        slope, explained = mean.new_zeros(len(removed), 0), torch.zeros_like(variance)
    usable = ~alone & (variance > 0)
    r2 = torch.where(usable, explained / variance.masked_fill(~usable, 1.0), 0.0).clamp(0, 1)
    merged = usable & (r2 >= min_r2)
    beta = torch.where(merged[:, None], slope, 0.0)
    gamma = torch.where(merged | alone | (unmerged == MEAN), mean[removed] - beta @ mean[partners], 0.0)
    gone = W.double()[:, removed]
    return _given(W, bias, removed, partners, gone @ beta, gone @ gamma, (beta, gamma, r2))


def _given(
    W: Tensor,
    bias: Tensor | None,
    removed: Tensor,
    to: Tensor,
    parts: Tensor,
    shift: Tensor,
    fit: tuple[Tensor, Tensor, Tensor],
) -> Merged:
    """Return the output map whose columns ``to`` (t,) have got ``parts`` (R, t) and whose bias has got ``shift`` (R,)."""
    new = W.double().clone().index_add_(1, to, parts)
    new[:, removed] = 0
    return Merged(new, shift if bias is None else bias.double() + shift, *fit)
