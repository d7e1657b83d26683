"""SparseGPT: OBS column by column under one inverse Hessian. Frantar & Alistarh, ICML 2023, arXiv:2301.00774.

With U the upper Cholesky factor of the inverse of the damped Hessian, columns go from left to right. Every
``block`` columns the lowest ``W^2 / U_cc^2`` of the layer's block are chosen (algorithm 1; per group of m for
n:m), and the error ``e = W_c / U_cc`` of what is removed is pushed to the columns on the right,
``W_j -= e U_cj``.
Dead inputs lose all their weights, as in the published code.

The rows of all layers with one input go through together: they share U, and rows do not interact. Inside a
block, errors are passed on in steps of ``STEP`` columns, the rest of the block by one product per step; that
is the same sum in another order. Counts are exact: blocks add up to ``floor(size ratio)`` of a layer; the published
threshold removes one weight more per block, or more with ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.sparsity.element import Budget, removed_in_matrix, select
from prunelab.sparsity.mask import erase
from prunelab.stats.view import View

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

    scope = "linear"
    needs = ("input_gram",)
    supports = ("unstructured", "n:m")

    def prune(self, view: View, budgets: Sequence[Budget]) -> tuple[Tensor, Tensor]:
        """Return keep (R, C) bool and the updated weights (R, C) float32, zero where not kept.

        ``budgets``: one per layer of the view, all of one pattern.
        """
        return self.prune_many(view, [budgets])[0]

    @torch.no_grad()
    def prune_many(self, view: View, choices: Sequence[Sequence[Budget]]) -> list[tuple[Tensor, Tensor]]:
        """Return what :meth:`prune` would for each of several budgets, to the bit, in about half the time.

        They go through the columns side by side: most of the time is calls on short vectors, not arithmetic.
        Products, whose rounding may depend on their size, are taken one by one. Needs the memory of all results.
        """
        U, dead = view.input_gram.inverse_factor(self.damping)
        # transposed: a column of W is then contiguous
        W = view.W.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        W[dead] = 0
        W = W.expand(len(choices), *W.shape).contiguous()
        keep = torch.empty(W.shape, dtype=torch.bool, device=W.device)
        group = choices[0][0].group
        columns, m = W.shape[1], group[1] if group else 1
        width = max(m, self.block // m * m)  # groups of m must not straddle blocks
        step = max(m, STEP // m * m)
        for start in range(0, columns, width):
            stop = min(start + width, columns)
            if group is None:
                self._choose(W, U, view, choices, keep, slice(start, stop))
            errors = torch.empty_like(W[:, start:stop])
            for first in range(start, stop, step):
                last = min(first + step, stop)
                inner = errors[:, first - start : last - start]
                self._columns(W, U, keep, inner, first, last, view, choices)
                _push(W[:, last:stop], U[first:last, last:stop], inner)
            _push(W[:, stop:], U[start:stop, stop:], errors)
        erase(W, keep)
        return [(kept.T, weight.T) for kept, weight in zip(keep, W, strict=True)]

    def _columns(
        self, W: Tensor, U: Tensor, keep: Tensor, errors: Tensor, first: int, last: int, view: View,
        choices: Sequence[Sequence[Budget]],
    ) -> None:  # fmt: skip
        """Remove within columns ``first`` to ``last`` of W (k, C, R), one by one; fill ``errors`` (k, last - first,
        R)."""
        group = choices[0][0].group
        # as few calls as possible for each column: thousands of them go through here one by one
        diagonal = U.diagonal()[first:last].tolist()
        gone = (~keep[:, first:last]).to(torch.int32)
        each = zip(
            range(first, last), diagonal, W[:, first:last].unbind(1), errors.unbind(1), gone.unbind(1), strict=True
        )  # fmt: skip
        for c, scale, weights, error, goes in each:
            if group is not None and c % group[1] == 0:  # with what the columns before have pushed here
                ahead = c + group[1]
                self._choose(W, U, view, choices, keep, slice(c, ahead))
                torch.logical_not(keep[:, c:ahead], out=gone[:, c - first : ahead - first])
            torch.div(weights, scale, out=error)
            erase(error, goes)
            if c + 1 < last:
                W[:, c + 1 : last].addcmul_(U[c, c + 1 : last, None], error[:, None], value=-1)

    @staticmethod
    def _choose(
        W: Tensor, U: Tensor, view: View, choices: Sequence[Sequence[Budget]], keep: Tensor, columns: slice
    ) -> None:  # fmt: skip
        """Fill ``keep`` (k, C, R) for ``columns`` of W (k, C, R), layer by layer."""
        scale = U.diagonal()[columns].square()[:, None]
        for weights, kept, budgets in zip(W[:, columns], keep[:, columns], choices, strict=True):
            score = (weights.square() / scale).T
            for part, budget in zip(view.parts(), budgets, strict=True):
                share = budget.group or _ratio(budget, score[part], columns)
                kept[:, part] = select(score[part], share, "matrix").T


def _ratio(budget: Budget, score: Tensor, columns: slice) -> float:
    """Return the removed fraction of a block (R, c) of a layer's ``columns``: over all blocks, the layer's own is met.

    The published code rounds every block for itself.
    """
    if budget.rounding == "published":
        return budget.ratio
    before, upto = (
        removed_in_matrix(len(score) * end, budget.ratio) for end in (columns.start, columns.stop)
    )
    return (upto - before) / score.numel()


def _push(W: Tensor, U: Tensor, errors: Tensor) -> None:
    """Subtract ``U^T errors`` from W (k, columns, R), each of the k on its own; U (c, columns), errors (k, c, R)."""
    if W.shape[1]:
        for weights, error in zip(W, errors, strict=True):
            weights.addmm_(U.T, error, alpha=-1)
