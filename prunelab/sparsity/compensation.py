"""What the output map makes of removed inputs: nothing, their mean, or a least-squares fit of the kept ones.

With z (C,) what enters the map, mean mu and covariance K over calibration tokens, R removed and S kept inputs:

    bias            b' = b + W[:, R] mu[R]                                             arXiv:2312.11983, eq. (6)
    least_squares   W'[:, S] = W[:, S] + W[:, R] K[R, S] (K[S, S] + eps mean(diag K[S, S]) I)^-1,  b' = b + W mu - W' mu

Least squares is a choice of this project, the best in squared output error on the calibration tokens as eps goes to 0;
``eps`` is 1e-3. Float32 statistics, float64 arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.linalg.regression import regression

EPS = 1e-3


def mean_into_bias(W: Tensor, bias: Tensor | None, keep: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return W (R, C) as it is and the bias (R,) that takes the removed inputs' mean; float64.

    ``keep`` (C,) bool; ``mean`` (C,).
    """
    wide = W.double()
    gone = wide[:, ~keep] @ mean.double()[~keep]
    return wide, gone if bias is None else bias.double() + gone


def least_squares(
    W: Tensor, bias: Tensor | None, keep: Tensor, mean: Tensor, gram: Tensor, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Return the new W (R, C) and bias (R,), float64. ``gram`` (C, C): average of z z^T.

    Raises ModelError if the kept inputs' covariance cannot be factorised.
    """
    wide, mu = W.double(), mean.double()
    covariance = gram.double() - torch.outer(mu, mu)
    fit = regression(covariance, keep.nonzero()[:, 0], (~keep).nonzero()[:, 0], eps)
    new = wide.clone()
    new[:, keep] += wide[:, ~keep] @ fit.T
    new[:, ~keep] = 0
    shift = (wide - new) @ mu
    return new, shift if bias is None else bias.double() + shift
