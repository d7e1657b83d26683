"""Optimal Brain Surgeon with a Kronecker-factored Fisher ``F = G (x) A`` (arXiv:2312.17244).

For ``min 1/2 tr(D^T G D A)`` subject to removed rows R' or columns C' of ``W + D`` being zero:

    rows      D = -Gi[:, R'] Gi[R', R']^-1 W[R', :]       (A cancels)
    columns   D = -W[:, C'] Ai[C', C']^-1 Ai[C', :]       (G cancels)

with Gi, Ai the inverses of the damped factors. By the block-inverse identity the kept rows P receive ``+
G_PP^-1 G_PR' W_R'``, which needs one Cholesky factor of the kept part and no inverse: that is what runs here.
Rows first, then columns of the updated weight, is exactly the joint optimum of both (the gradient of the
quadratic is then supported on the removed entries); the published script adds the two updates instead, which
is no better (:func:`remove_summed`). Single weights, removed where a mask K says so:

    elements  D = -Gi Z Ai      (Gi o Ai)_KK z_K = W_K,  Z = z on K and 0 elsewhere

whose system has as many unknowns as weights go. The same D solves the normal equations on the weights that stay,
``keep o (G (W + D) A) = keep o (G W A)``, which conjugate gradients do for any number of them in dense products. All
algebra is float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prunelab.linalg.factor import cholesky
from prunelab.linalg.masked import Solution, solve_masked


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


def remove_summed(
    W: Tensor, G: Tensor, A: Tensor, keep_rows: Tensor, keep_columns: Tensor, what: str = "a layer"
) -> Tensor:
    """Return W (R, C) with the updates for its removed rows and for its removed columns, both of W, added up.

    What the published structured script does; where rows and columns go together it makes up for their common weights
    twice. G (R, R) and A (C, C) are the damped factors, float64. Removed rows and columns are exactly 0.
    """
    by_rows = remove_rows(W, G, keep_rows, f"{what} (output)") - W
    by_columns = remove_columns(W, A, keep_columns, f"{what} (input)") - W
    return (W + by_rows + by_columns) * keep_rows[:, None] * keep_columns[None, :]


def remove_lines_singly(
    W: Tensor, G: Tensor, A: Tensor, keep_rows: Tensor, keep_columns: Tensor, what: str = "a layer"
) -> Tensor:
    """Return W (R, C) with the sum of the updates of single removed rows and columns; these are exactly 0."""
    updated = W.clone()
    if not keep_rows.all():
        updated += remove_rows_singly(W, G, keep_rows, f"{what} (output)")
    if not keep_columns.all():
        updated += remove_columns_singly(W, A, keep_columns, f"{what} (input)")
    return updated * keep_rows[:, None] * keep_columns[None, :]


def remove_elements_singly(W: Tensor, G: Tensor, A: Tensor, keep: Tensor, what: str = "a layer") -> Tensor:
    """Return W (R, C) with the sum of the updates of single removed weights, ``keep`` (R, C) False: no correlations.

    G (R, R) and A (C, C) are the damped factors, float64. Removed weights are exactly 0.
    """
    Gi, Ai = (torch.cholesky_inverse(cholesky(one, what)) for one in (G, A))
    Z = (W / Gi.diagonal()[:, None] / Ai.diagonal()).masked_fill_(keep, 0)
    return (W - Gi @ (Z @ Ai)).masked_fill_(~keep, 0)


def remove_elements_in_groups(
    W: Tensor, G: Tensor, A: Tensor, keep: Tensor, limit: int, what: str = "a layer"
) -> Tensor:
    """Return W (R, C) with removed weights, ``keep`` (R, C) False, made up for group by group, as the published code does.

    A group is whole consecutive rows with at most ``limit`` removed weights together, or one row with more; each acts on
    all rows and sees what the groups before have made of its own weights. Z has entries in its group's rows alone, so two
    products with those rows do (the code multiplies whole matrices, with the same result). Removed weights are exactly 0.
    """
    Gi, Ai = (torch.cholesky_inverse(cholesky(one, what)) for one in (G, A))
    W, counts = W.clone(), (~keep).sum(1).tolist()
    for first, last in _row_groups(counts, limit):
        rows, columns = (~keep[first:last]).nonzero(as_tuple=True)
        if not len(rows):
            continue
        rows = rows + first
        S = Gi[rows[:, None], rows] * Ai[columns[:, None], columns]
        z = torch.cholesky_solve(W[rows, columns][:, None], cholesky(S, what))[:, 0]
        Z = W.new_zeros(last - first, W.shape[1])
        Z[rows - first, columns] = z
        W -= Gi[:, first:last] @ (Z @ Ai)
    return W.masked_fill_(~keep, 0)


def _row_groups(counts: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of consecutive rows that lose at most ``limit`` weights together, or of one that loses more."""
    first, total = 0, 0
    for row, count in enumerate(counts):
        if row > first and total + count > limit:
            yield first, row
            first, total = row, 0
        total += count
    if counts:
        yield first, len(counts)


def remove_elements(
    W: Tensor, G: Tensor, A: Tensor, keep: Tensor, *, tolerance: float, iterations: int, what: str = "a layer"
) -> Solution:
    """Return W (R, C) without the weights where ``keep`` (R, C) is False, the others at the joint optimum.

    G (R, R) and A (C, C) are the damped factors, float64. ``tolerance``: how far ``tr(D^T G D A)`` may lie above its
    optimum, relative to it; ``iterations``: the limit. Removed weights are exactly 0.
    """
    return solve_masked(W, G @ (W @ A), A, keep, tolerance=tolerance, iterations=iterations, name=what, G=G)
