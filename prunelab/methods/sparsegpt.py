"""SparseGPT: OBS column by column under one inverse Hessian. Frantar & Alistarh, ICML 2023, arXiv:2301.00774.

With U the upper Cholesky factor of the inverse of the damped Hessian, columns go from left to right. Every
``block`` columns the lowest ``W^2 / U_cc^2`` of the layer's block are chosen (algorithm 1; per group of m for
n:m), and the error ``e = W_c / U_cc`` of what is removed is pushed to the columns on the right,
``W_j -= e U_cj``.
Dead inputs lose all their weights, as in the published code.

The rows of all layers with one input go through together: they share U, and rows do not interact. Inside a
block, errors are passed on in steps of ``STEP`` columns, the rest of the block by one product per step; that
is the same sum in another order. Counts per block and layer are exact, ``floor(size ratio)``; the published
threshold removes one weight more, or more with ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.sparsity.element import select
from prunelab.sparsity.mask import erase
from prunelab.sparsity.pattern import Budget
from prunelab.stats.linear import LinearView

STEP = 16  # columns


@dataclass(frozen=True)
class SparseGPT:
    """Masks and updated weights from the inputs' second moments. ``block``: columns per choice, 128 in the
    paper; ``damping``: relative to the mean of the diagonal."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    block: Annotated[int, "x >= 1"]
    damping: Annotated[float, "x >= 0"]

    needs = ("input_gram",)
    supports = ("unstructured", "n:m")

    @torch.no_grad()
    def prune(self, view: LinearView, budgets: Sequence[Budget]) -> tuple[Tensor, Tensor]:
        """Return keep (R, C) bool and the updated weights (R, C) float32, zero where not kept.

        ``budgets``: one per layer of the view, all of one pattern.
        """
        U, dead = view.input_hessian.inverse_factor(self.damping)
        # transposed: a column of W is then contiguous
        W = view.W.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        W[dead] = 0
        keep = torch.empty(W.shape, dtype=torch.bool, device=W.device)
        diagonal = U.diagonal().tolist()
        m = budgets[0].m or 1
        width = max(m, self.block // m * m)  # groups of m must not straddle blocks
        step = max(m, STEP // m * m)
        for start in range(0, W.shape[0], width):
            stop = min(start + width, W.shape[0])
            if budgets[0].m is None:
                scale = U.diagonal()[start:stop].square()[:, None]
                self._choose(W[start:stop], scale, view, budgets, keep[start:stop])
            errors = torch.empty_like(W[start:stop])
            for first in range(start, stop, step):
                last = min(first + step, stop)
                inner = errors[first - start : last - start]
                self._columns(W, U, diagonal, keep, inner, first, last, view, budgets)
                if last < stop:
                    W[last:stop].addmm_(U[first:last, last:stop].T, inner, alpha=-1)
            if stop < W.shape[0]:
                W[stop:].addmm_(U[start:stop, stop:].T, errors, alpha=-1)
        erase(W, keep)
        return keep.T, W.T

    def _columns(
        self, W: Tensor, U: Tensor, diagonal: list[float], keep: Tensor, errors: Tensor, first: int, last: int,
        view: LinearView, budgets: Sequence[Budget],
    ) -> None:  # fmt: skip
        """Remove within columns ``first`` to ``last`` of W (C, R), one by one; fill ``errors`` (last - first,
        R). ``diagonal``: U's."""
        m = budgets[0].m
        # hardly more than a call per step for each column: thousands of them go through here one by one
        gone = (~keep[first:last]).to(torch.int32)
        columns = zip(range(first, last), W[first:last].unbind(), errors.unbind(), gone.unbind(), strict=True)
        for c, weights, error, goes in columns:
            if m is not None and c % m == 0:  # with what the columns before have pushed here
                scale = U.diagonal()[c : c + m].square()[:, None]
                self._choose(W[c : c + m], scale, view, budgets, keep[c : c + m])
                torch.logical_not(keep[c : c + m], out=gone[c - first : c - first + m])
            torch.div(weights, diagonal[c], out=error)
            erase(error, goes)
            if c + 1 < last:
                W[c + 1 : last].addr_(U[c, c + 1 : last], error, alpha=-1)

    @staticmethod
    def _choose(W: Tensor, scale: Tensor, view: LinearView, budgets: Sequence[Budget], keep: Tensor) -> None:
        """Fill ``keep`` (columns, R) for the columns of W (columns, R), layer by layer."""
        score = (W.square() / scale).T
        for part, budget in zip(view.parts(), budgets, strict=True):
            if budget.n is not None and budget.m is not None:
                keep[:, part] = select(score[part], (budget.n, budget.m)).T
            else:
                keep[:, part] = select(score[part], budget.ratio, "matrix").T
