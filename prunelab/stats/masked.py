"""Masked least squares: the best weights of a linear layer for a fixed mask, all rows at once.

    min_X  sum_r (X_r - V_r) H (X_r - V_r)^T     subject to X = 0 where the mask says so

Each row is its own problem on its own kept columns; solving them directly would cost R factorisations of up
to C x C. Preconditioned conjugate gradients on ``keep o (X H) = keep o B`` with the preconditioner
``keep o (Z H^-1)`` do all rows in two products per iteration, with one step length per row, since rows do not
couple. This is the element-wise solver for a Kronecker-factored Fisher with G = I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ModelError


@dataclass(frozen=True, eq=False)
class Solution:
    """``X`` (R, C) float64; how many iterations it took; the largest residual of a row, over its right-hand side's."""

    X: Tensor
    iterations: int
    residual: float


@torch.no_grad()
def solve_masked(
    start: Tensor, wanted: Tensor, H: Tensor, keep: Tensor, *, tolerance: float, iterations: int, name: str
) -> Solution:
    """Return X (R, C) with ``keep o (X H) = keep o wanted`` and X = 0 elsewhere, from ``start`` (R, C).

    ``wanted`` (R, C) is ``V H``; ``H`` (C, C) positive definite (damped); all in float64. Stops when every
    row's residual is below ``tolerance`` times its right-hand side, or after ``iterations``. A start that
    solves the system is returned bit for bit. Raises ModelError naming the layer if H is not positive
    definite.
    """
    X = start.masked_fill(~keep, 0)
    lower, info = torch.linalg.cholesky_ex(H)
    if int(info) != 0:
        raise ModelError(
            f"{name}: the damped Gram matrix ({H.shape[0]} wide) is not positive definite. Raise "
            "reconstruction.damping or reconstruct on more tokens."
        )
    residual = (wanted - X @ H).masked_fill_(~keep, 0)
    size = wanted.masked_fill(~keep, 0).norm(dim=1, keepdim=True)
    limit = tolerance * size
    done = residual.norm(dim=1, keepdim=True) <= limit
    used = 0
    if not bool(done.all()):
        inverse = torch.cholesky_inverse(lower)
        Z = (residual @ inverse).masked_fill_(~keep, 0)
        P, energy = Z.clone(), (residual * Z).sum(1, keepdim=True)
        while used < iterations and not bool(done.all()):
            used += 1
            Q = (P @ H).masked_fill_(~keep, 0)
            alpha = torch.where(done, 0.0, energy / (P * Q).sum(1, keepdim=True).clamp_min(1e-300))
            X += alpha * P
            residual -= alpha * Q
            done |= residual.norm(dim=1, keepdim=True) <= limit
            Z = (residual @ inverse).masked_fill_(~keep, 0)
            new = (residual * Z).sum(1, keepdim=True)
            P = Z + new / energy.clamp_min(1e-300) * P
            energy = new
    left = residual.norm(dim=1, keepdim=True) / size.clamp_min(1e-300)
    return Solution(X, used, float(left.max()))


@torch.no_grad()
def descend_masked(
    start: Tensor, wanted: Tensor, H: Tensor, keep: Tensor, *, learning_rate: float, iterations: int
) -> Solution:
    """Take ``iterations`` Adam steps on the same problem (betas 0.9 and 0.95), the learning rate falling
    linearly to 0; arguments as in :func:`solve_masked`."""
    X = start.masked_fill(~keep, 0)
    first, second = torch.zeros_like(X), torch.zeros_like(X)
    for t in range(iterations):
        slope = (X @ H - wanted).masked_fill_(~keep, 0)
        first.lerp_(slope, 0.1)
        second.lerp_(slope.square(), 0.05)
        step = first / (1 - 0.9 ** (t + 1)) / ((second / (1 - 0.95 ** (t + 1))).sqrt() + 1e-30)
        X -= learning_rate * (1 - t / iterations) * step
    residual = (wanted - X @ H).masked_fill_(~keep, 0)
    left = residual.norm(dim=1) / wanted.masked_fill(~keep, 0).norm(dim=1).clamp_min(1e-300)
    return Solution(X, iterations, float(left.max()))
