"""Shares by error curves: how the output suffers as a module loses its lowest units, and where the budget hurts least.

The gradient-free allocation beside the learned one of arXiv:2603.13418, step 3 (our reconstruction). Of one output map
``W`` (out, in) with input ``z``: dropping the columns R costs ``E ||W_R z_R||^2 = tr(W_R C_RR W_R^T)`` with
``C = E[z z^T]``; a bias that makes up for the mean leaves the same with the covariance in the place of ``C``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.generalization.budget import Modules

GRID = tuple(i / 10 for i in range(10))


def output_power(W: Tensor, moment: Tensor) -> float:
    """Return ``tr(W C W^T)``, the mean squared output of ``W`` (out, in) for ``moment`` (in, in)."""
    exact = W.double()
    return float(((exact @ moment.double()) * exact).sum())


def drop_curve(
    W: Tensor, moment: Tensor, columns: Tensor, power: float, *, mean: Tensor | None = None,
    grid: Sequence[float] = GRID,
) -> Tensor:  # fmt: skip
    """Return the relative squared output error, (len(grid),) float64, once a share of a module's units is dropped.

    ``columns`` (n, lines) int64: the columns of ``W`` (out, in) that belong to each unit of the module, in the order in
    which units go; a share s drops ``round(s n)``. ``moment`` (in, in) = ``E[z z^T]``; ``power``: what the error is
    relative to, see :func:`output_power`. ``mean`` (in,): of z, if a bias makes up for what is dropped. Memory: the
    square of the module's columns. ModelError for an output of power 0.
    """
    if not power > 0:
        raise ModelError(
            "an output map gives 0 for all tokens, so no error is relative to it; is its block dead?"
        )
    n, lines = columns.shape
    flat = columns.reshape(-1)
    C = moment[flat][:, flat].double()
    if mean is not None:
        mu = mean[flat].double()
        C = C - torch.outer(mu, mu)
    part = W[:, flat].double()
    Q = (part.T @ part) * C
    # the leading k x k block of Q sums up to the error of the first k columns
    grown = (2 * torch.triu(Q, 1).sum(0) + Q.diagonal()).cumsum(0).clamp(min=0)
    whole = torch.cat([torch.zeros(1, dtype=grown.dtype, device=grown.device), grown[lines - 1 :: lines]])
    return whole[[round(share * n) for share in grid]] / power


def lower_hull(grid: Sequence[float], errors: Tensor) -> Tensor:
    """Return the largest convex curve below ``errors`` (n,) >= 0 at the points ``grid``, rising from the first.

    With ``errors[0] = 0`` it never falls.
    """
    values = errors.tolist()
    hull: list[int] = []
    for i in range(len(values)):
        while len(hull) > 1 and _slope(grid, values, hull[-2], hull[-1]) >= _slope(grid, values, hull[-1], i):
            hull.pop()
        hull.append(i)
    result = list(values)
    for a, b in pairwise(hull):
        for i in range(a + 1, b):
            result[i] = values[a] + _slope(grid, values, a, b) * (grid[i] - grid[a])
    return torch.tensor(result, dtype=torch.float64)


def by_curves(
    modules: Modules, budget: float, errors: Tensor, *, grid: Sequence[float] = GRID,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return shares (K,) that meet ``budget`` exactly at the least sum of ``errors`` (K, len(grid)), made convex.

    Pieces of the curves are bought by error per parameter, the cheapest first, the last one in part; with convex curves
    that is the optimum. ``weights`` (K,): what a module's error counts, 1 for all if None. Shares stay within the
    modules' bounds and below the grid's end; ConfigError for a budget that they cannot meet.
    """
    low, high = modules.low, min(modules.high, grid[-1])
    Modules(modules.counts, modules.costs, modules.layers, low, high).check(budget)
    sizes, pieces = modules.sizes.tolist(), []
    for c, size in enumerate(sizes):
        hull = lower_hull(grid, errors[c]).tolist()
        factor = 1.0 if weights is None else float(weights[c])
        for i in range(len(grid) - 1):
            length = min(grid[i + 1], high) - max(grid[i], low)
            if length > 0 and size > 0:
                price = factor * _slope(grid, hull, i, i + 1) / size
                pieces.append((price, c, i, length))
    shares, left = [low] * len(sizes), budget - low * sum(sizes)
    for _, c, _, length in sorted(pieces):
        if left <= 0:
            break
        part = min(length, left / sizes[c])
        shares[c] += part
        left -= part * sizes[c]
    return torch.tensor(shares, dtype=torch.float64)


def prices(errors: Tensor, size: float, percentiles: Tensor, *, grid: Sequence[float] = GRID) -> Tensor:
    """Return what each unit of one module costs in error per parameter, (n,) float64, to be ranked against all others.

    ``errors`` (len(grid),) of the module, ``size`` its parameters, ``percentiles`` (n,) of its units, distinct. A unit
    has the slope of the convex curve at its percentile, so that removing the cheapest units of all modules spends as
    :func:`by_curves` does. Inside a piece, and beyond the grid's end, prices rise by a billionth: order, no more.
    """
    hull = lower_hull(grid, errors)
    starts = torch.tensor(list(grid), dtype=torch.float64)
    slopes = ((hull[1:] - hull[:-1]) / (starts[1:] - starts[:-1]) / size).cummax(0).values  # against rounding
    where = torch.bucketize(percentiles.double().cpu(), starts[1:-1].contiguous(), right=True)
    tiny = 1e-9 * slopes.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return (slopes[where] + tiny * percentiles.double().cpu()).to(percentiles.device)


def _slope(grid: Sequence[float], values: Sequence[float], a: int, b: int) -> float:
    return (values[b] - values[a]) / (grid[b] - grid[a])
