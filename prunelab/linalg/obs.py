"""Optimal Brain Surgeon with a Kronecker-factored Fisher ``F = G (x) A`` (arXiv:2312.17244).

For ``min 1/2 tr(D^T G D A)`` subject to removed rows R' or columns C' of ``W + D`` being zero:

    rows      D = -Gi[:, R'] Gi[R', R']^-1 W[R', :]       (A cancels)
    columns   D = -W[:, C'] Ai[C', C']^-1 Ai[C', :]       (G cancels)

with Gi, Ai the inverses of the damped factors. By the block-inverse identity the kept rows P receive ``+
G_PP^-1 G_PR' W_R'``, which needs one Cholesky factor of the kept part and no inverse: that is what runs here.
Rows first, then columns of the updated weight, is exactly the joint optimum of both (the gradient of the
quadratic is then supported on the removed entries); the published script adds the two updates instead, which
is no better. All algebra is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.linalg.factor import cholesky


def row_quadratic(W: Tensor, A: Tensor) -> Tensor:
    """Return ``W_r A W_r^T`` for every row, (R,), float64; W (R, C), A (C, C)."""
    W = W.to(torch.float64)
    return ((W @ A.to(torch.float64)) * W).sum(1)


def column_quadratic(W: Tensor, G: Tensor) -> Tensor:
    """Return ``W_c^T G W_c`` for every column, (C,), float64; W (R, C), G (R, R)."""
    W = W.to(torch.float64)
    return ((G.to(torch.float64) @ W) * W).sum(0)


def remove_rows(W: Tensor, G: Tensor, keep: Tensor, what: str = "rows") -> Tensor:
    """Return W (R, C) without the rows where ``keep`` (R,) is False; the others make up for them as G (R, R)
    says.

    G is the damped factor, float64. Removed rows are exactly 0.
    """
    updated = torch.zeros_like(W)
    if not keep.any():
        return updated
    kept, gone = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
    lower = cholesky(G[kept][:, kept], what)
    cross, lost = G[kept][:, gone], W[gone]
    if gone.numel() <= W.shape[1]:  # solve for the thinner right-hand side
        repair = torch.cholesky_solve(cross, lower) @ lost
    else:
        repair = torch.cholesky_solve(cross @ lost, lower)
    updated[kept] = W[kept] + repair
    return updated


def remove_columns(W: Tensor, A: Tensor, keep: Tensor, what: str = "columns") -> Tensor:
    """Return W (R, C) without the columns where ``keep`` (C,) is False; the others make up for them as A (C,
    C) says.

    A is the damped factor, float64. Removed columns are exactly 0.
    """
    return remove_rows(W.T, A, keep, what).T


def remove_rows_singly(W: Tensor, G: Tensor, keep: Tensor, what: str = "rows") -> Tensor:
    """Return the sum over removed rows of their own single-row updates, (R, C): no correlations between rows.

    G is the damped factor (R, R), float64. It is a difference to add to W; nothing is zeroed here.
    """
    gone = (~keep).nonzero()[:, 0]
    unit = torch.zeros(W.shape[0], gone.numel(), dtype=W.dtype, device=W.device)
    unit[gone, torch.arange(gone.numel(), device=W.device)] = 1
    columns = torch.cholesky_solve(unit, cholesky(G, what))  # (R, gone) of the inverse
    scale = columns[gone, torch.arange(gone.numel(), device=W.device)]
    return -columns @ (W[gone] / scale[:, None])


def remove_columns_singly(W: Tensor, A: Tensor, keep: Tensor, what: str = "columns") -> Tensor:
    """Return the sum over removed columns of their own single-column updates, (R, C), to add to W."""
    return remove_rows_singly(W.T, A, keep, what).T
