"""Mutual information as if two neurons were jointly Gaussian: ``I = -1/2 log2(1 - rho^2)``, exact if they are.

One correlation matrix per layer, ``O(n m^2)``: a fast screen, and an oracle for other estimators. Dependence without
correlation (z and z^2) is not seen. arXiv:2406.00030 compares with no such screen; it is prunelab's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.information.pairs import Values, normalised

CAP = 1 - 1e-12  # of rho^2: a neuron's information about itself would be infinite
BAND = 1024  # rows of the correlation matrix at a time


@dataclass(frozen=True)
class Gaussian:
    """``normalize``: ``none`` for bits, ``self`` for shares of the (capped) self-information, 19.9 bits."""

    normalize: str = "none"

    def matrix(self, Z: Tensor) -> Tensor:
        """Return the values of all pairs of columns of ``Z`` (n, m): (m, m) in its dtype; 0 for a constant column."""
        unit = _unit(Z)
        bits = Z.new_empty(Z.shape[1], Z.shape[1])
        for start in range(0, Z.shape[1], BAND):
            bits[start : start + BAND] = _bits(unit[:, start : start + BAND].T @ unit)
        return normalised(bits, _bits(unit.square().sum(0)), None, self.normalize)

    def values(self, Z: Tensor) -> Values:
        """Return a function of pairs (p, 2) of columns that gives what :meth:`matrix` has there, (p,) float64."""
        unit = _unit(Z)
        own = _bits(unit.square().sum(0))

        def value(pairs: Tensor) -> Tensor:
            pairs = pairs.to(Z.device)
            bits = _bits((unit[:, pairs[:, 0]] * unit[:, pairs[:, 1]]).sum(0))
            return normalised(bits, own, None, self.normalize, pairs)

        return value


def correlations(Z: Tensor, pairs: Tensor) -> Tensor:
    """Return rho of pairs (p, 2) of columns of ``Z`` (n, m), (p,) float64; 0 with a constant column."""
    unit = _unit(Z)
    return (unit[:, pairs[:, 0]] * unit[:, pairs[:, 1]]).sum(0)


def _unit(Z: Tensor) -> Tensor:
    """Return the columns centred and of length 1, float64; a constant one stays 0."""
    if Z.ndim != 2:
        allowed = "renyi_matrix for variables of several channels, such as attention heads"
        raise ConfigError("method.estimator", "gaussian", allowed)
    exact = Z.double()  # in float32, 1 - rho^2 of a near copy would be noise
    centred = exact - exact.mean(0)
    length = torch.linalg.vector_norm(centred, dim=0)
    return centred / torch.where(length > 0, length, 1.0)


def _bits(rho: Tensor) -> Tensor:
    return torch.log2(1 - rho.square().clamp(max=CAP)) / -2
