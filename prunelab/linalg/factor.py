"""Damped Gram matrices and what is computed from them: Cholesky factors, inverse diagonals, inverse factors.

A Gram matrix ``H`` (n, n) is damped by ``damping * mean(diag)``, relative, so that its scale does not matter. An
entry that never carried a signal (``H_ii = 0``, dead) takes no part in the mean and gets 1 on the diagonal, without
coupling to the others. All algebra is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.errors import ModelError


def damped(matrix: Tensor, damping: float) -> Tensor:
    """Return ``matrix + damping * mean(diag of what is live) * I`` (n, n) in float64, 1 added where dead."""
    H = matrix.to(torch.float64, copy=True)
    diagonal = H.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not bool(dead.all()) else diagonal.new_ones(())
    diagonal += torch.where(dead, 1.0, damping * mean)
    return H


def cholesky(matrix: Tensor, what: str) -> Tensor:
    """Return the lower Cholesky factor (n, n); ModelError that names ``what`` if not positive definite."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise ModelError(
            f"{what}: the damped matrix ({matrix.shape[0]} wide) is not positive definite (pivot {int(info)}). "
            "Raise the damping (method.damping*, reconstruction.damping; 0.01 is usual) or take more tokens."
        )
    return lower


def inverse_diagonal(matrix: Tensor, what: str) -> Tensor:
    """Return the diagonal (n,) of the inverse of a positive definite matrix (n, n)."""
    lower = cholesky(matrix, what)
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(lower, identity, upper=False).square().sum(0)


def inverse_factor(matrix: Tensor, what: str) -> Tensor:
    """Return U (n, n), upper triangular with ``U^T U = matrix^-1``, of a positive definite float64 matrix.

    One Cholesky factorisation: with the order of the entries reversed, ``matrix = V V^T`` for an upper triangular V,
    and U is its inverse.
    """
    return _inverse_of_lower(cholesky(matrix.flip(0, 1), what)).flip(0, 1)


def _inverse_of_lower(lower: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix by halves: products instead of a solve against the identity."""
    n = lower.shape[0]
    if n <= 192:
        identity = torch.eye(n, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    half = n // 2
    inverse = torch.zeros_like(lower)
    inverse[:half, :half] = _inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse
