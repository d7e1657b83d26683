"""Masked least squares: the best weights of a linear layer for a fixed mask, all rows at once.

    min_X  sum_r f_r(X)     f_r(X) = (X_r - U_r) H (X_r - U_r)^T     subject to X = 0 where the mask says so

with ``B = U H`` given. Each row is its own problem on its own kept columns; solving them directly would cost R
factorisations of up to C x C. Preconditioned conjugate gradients on ``keep o (X H) = keep o B`` with the
preconditioner ``keep o (Z H^-1)`` do all rows in two products per iteration, with one step length per row, since
rows do not couple. With a second factor G they do: then ``f(X) = tr((X - U)^T G (X - U) H)`` with ``B = G U H``, the
preconditioner is ``keep o (G^-1 Z H^-1)``, and one step length serves all rows, for four products per iteration. That is
the exact joint update of single weights under a Kronecker-factored Fisher (arXiv:2312.17244), of any number of them.

How far a row is from its optimum is known on the way. With ``E = B - X H`` and ``r = keep o E``,

    f(X) = E H^-1 E^T        f(X) - min f = r_K (H_KK)^-1 r_K^T  <=  r H^-1 r^T

K being the kept columns: ``(H_KK)^-1`` is at most the K block of ``H^-1`` (Schur complement), and likewise of ``G (x) H``.
The right-hand side is the quantity from which conjugate gradients take their step length, so the bound costs nothing, and
f falls by (step length x bound) per iteration. The relative residual ``|r| / |keep o B|`` alone says little: where H is
ill-conditioned, one of 1e-4 leaves f several times its optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.linalg.factor import cholesky


@dataclass(frozen=True, eq=False)
class Solution:
    """``X`` (R, C) float64 and how good it is.

    ``residual``: the largest ``|r| / |keep o B|`` of a row. ``gap``: bound on how far the sum of f over all rows lies
    above its optimum, relative to it.
    """

    X: Tensor
    iterations: int
    residual: float
    gap: float


@torch.no_grad()
def solve_masked(
    start: Tensor, wanted: Tensor, H: Tensor, keep: Tensor, *, tolerance: float, iterations: int, name: str,
    G: Tensor | None = None,
) -> Solution:  # fmt: skip
    """Return X (R, C) with ``keep o (X H) = keep o wanted`` and X = 0 elsewhere, from ``start`` (R, C); with ``G``
    (R, R), ``keep o (G X H) = keep o wanted``.

    ``wanted`` (R, C) is B; ``H`` (C, C) and G positive definite (damped); all in float64. Stops when f of every row (with
    G: of all of them together) is at most ``tolerance`` above its optimum, relative to it, or after ``iterations``. A
    start that solves the system is returned bit for bit. Raises ModelError naming the layer if a factor is not positive
    definite.
    """
    X = start.masked_fill(~keep, 0)
    system = _System(H, _inverse(H, name), G, None if G is None else _inverse(G, name))
    error = wanted - system.product(X)
    value = system.dot(error, system.solved(error))  # f of each row, (R, 1), or of all, (1, 1)
    rounding = _ROUNDING * system.dot(wanted, system.solved(wanted))  # of zeros, and what float64 makes of it
    residual = error.masked_fill(~keep, 0)
    Z = system.solved(residual).masked_fill_(~keep, 0)
    P, bound = Z.clone(), system.dot(residual, Z)
    used = 0
    while used < iterations:
        working = bound > (tolerance / (1 + tolerance) * value).clamp_min(rounding)
        if not bool(working.any()):
            break
        used += 1
        Q = system.product(P).masked_fill_(~keep, 0)
        alpha = torch.where(working, bound / system.dot(P, Q).clamp_min(_TINY), 0.0)
        X += alpha * P
        residual -= alpha * Q
        value = (value - alpha * bound).clamp_min(0)
        Z = system.solved(residual).masked_fill_(~keep, 0)
        new = system.dot(residual, Z)
        P = Z + new / bound.clamp_min(_TINY) * P
        bound = new
    return _judged(X, used, wanted, system, keep)


@torch.no_grad()
def descend_masked(
    start: Tensor,
    wanted: Tensor,
    H: Tensor,
    keep: Tensor,
    *,
    learning_rate: float,
    iterations: int,
    name: str,
) -> Solution:
    """Take ``iterations`` Adam steps on the same problem (betas 0.9 and 0.95), the learning rate falling
    linearly to 0; arguments as in :func:`solve_masked`."""
    X = torch.nn.Parameter(start.masked_fill(~keep, 0), requires_grad=False)
    # a row's gradient may be of any size, so that nothing but rounding may be small beside eps
    optimiser = torch.optim.Adam([X], lr=learning_rate, betas=(0.9, 0.95), eps=1e-30)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / iterations)
    for _ in range(iterations):
        X.grad = (X @ H - wanted).masked_fill_(~keep, 0)
        optimiser.step()
        schedule.step()
    return _judged(X.detach(), iterations, wanted, _System(H, _inverse(H, name)), keep)


_TINY = 1e-300  # beside which nothing in float64 vanishes
_ROUNDING = 1e-20  # of f of a row of zeros: beyond that float64 has nothing to say


@dataclass(frozen=True, eq=False)
class _System:
    """``X -> X H`` or ``X -> G X H``, and the inverse of it."""

    H: Tensor
    H_inverse: Tensor
    G: Tensor | None = None
    G_inverse: Tensor | None = None

    def product(self, X: Tensor) -> Tensor:
        """Return ``X H`` or ``G X H``."""
        return X @ self.H if self.G is None else self.G @ (X @ self.H)

    def solved(self, B: Tensor) -> Tensor:
        """Return ``B H^-1`` or ``G^-1 B H^-1``."""
        return B @ self.H_inverse if self.G_inverse is None else self.G_inverse @ (B @ self.H_inverse)

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the product of rows, (R, 1), where each is its own problem; else of all, (1, 1)."""
        products = left * right
        return products.sum(1, keepdim=True) if self.G is None else products.sum().view(1, 1)


def _judged(X: Tensor, iterations: int, wanted: Tensor, system: _System, keep: Tensor) -> Solution:
    """Return X with its residual and its gap, computed anew from X."""
    error = wanted - system.product(X)
    residual = error.masked_fill(~keep, 0)
    size = wanted.masked_fill(~keep, 0).norm(dim=1).clamp_min(_TINY)
    bound = float(system.dot(residual, system.solved(residual)).sum())
    optimum = float(system.dot(error, system.solved(error)).sum()) - bound  # at least
    gap = bound / optimum if optimum > 0 else 0.0 if bound == 0 else math.inf
    return Solution(X, iterations, float((residual.norm(dim=1) / size).max()), gap)


def _inverse(H: Tensor, name: str) -> Tensor:
    return torch.cholesky_inverse(cholesky(H, name))
