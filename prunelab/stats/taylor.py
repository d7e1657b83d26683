"""How much the loss changes to first and second order as lines of a weight go: sums of ``w dL/dw`` and its squares.

With ``L_s`` the mean token loss of sequence s (its T - 1 tokens that have a next one), N sequences, and for every
weight w and bias b of a layer

    g = (1/N) sum_s dL_s/dw                 the gradient of the mean loss: all sequences are equally long
    F = (1/N) sum_s (dL_s/dw)^2             the diagonal of the empirical Fisher information, over sequences

a line (a row or a column of the weight) has four sums over its weights, in nats:

    signed   sum w g                        its absolute value is the importance ``vector`` of arXiv:2305.11627
    element1 sum |w g|                      ``param_first`` in that paper's code
    second   sum w^2 F                      ``param_second``
    mixed    sum |w g - w^2 F / 2|          ``param_mix``, the paper's element^2

Only these are kept: vectors, a few per layer. On the way one layer needs the sums of its gradients and of their
squares over sequences, two float64 matrices; a walk back holds those of one block. A sequence's gradient is one
product in float32, added in float64: so the sums depend neither on how many sequences go through at a time nor, but
for the last bit of a float64, on how ranks share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256  # rows of a gradient per product
SUMS = ("signed", "element1", "second", "mixed")


@dataclass(frozen=True, eq=False)
class TaylorSums:
    """The sums of one layer, float32: ``rows`` (4, R) and ``columns`` (4, C) over the weight's lines, ``bias`` (4, R)
    of the biases alone, 0 without one; the four in the order of ``SUMS``.

    Sums of several lines are sums of these, also signed ones: so a unit of many lines may count as one slice.
    """

    rows: Tensor
    columns: Tensor
    bias: Tensor

    def of(self, kind: str, axis: int, *, bias: bool = True) -> Tensor:
        """Return the sums ``kind`` of every row (axis 0), with its bias' term unless told otherwise, or column (1)."""
        at = SUMS.index(kind)
        if axis == 1:
            return self.columns[at]
        return self.rows[at] + self.bias[at] if bias else self.rows[at]


def terms(w: Tensor, g: Tensor, F: Tensor) -> Tensor:
    """Return the four terms of every weight, stacked in the order of ``SUMS``; ``w``, ``g``, ``F`` of one shape."""
    first, second = w * g, w.square() * F
    return torch.stack([first, first.abs(), second, (first - second / 2).abs()])


class TaylorSum:
    """Running sums over sequences of a layer's gradient and of its square: ``total`` (2, R, C), or (2, R, C + 1)
    with the bias' gradient as last column, float64."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        rows, columns = weight.shape
        shape = 2, rows, columns + (bias is not None)
        self.total = torch.zeros(shape, dtype=torch.float64, device=weight.device)
        self.n_tokens = 0  # sequences: every one counts the same, and they are equally long

    @torch.no_grad()
    def add(self, x: Tensor, slope: Tensor) -> None:
        """Add the gradients of sequences ``x`` (n, seq_len, C) with ``slope`` (n, seq_len, R), of summed losses."""
        columns = self.weight.shape[1]
        for entering, leaving in zip(x.detach(), slope.detach(), strict=True):
            tokens, slopes = entering.float(), leaving.float()
            targets = len(tokens) - 1  # the loss of a sequence is their mean
            for start in range(0, self.total.shape[1], BLOCK):
                rows = slice(start, start + BLOCK)
                self._add(rows, slice(0, columns), (slopes[:, rows].T @ tokens).double() / targets)
                if self.bias is not None:
                    self._add(rows, slice(columns, None), slopes[:, rows].double().sum(0)[:, None] / targets)
            self.n_tokens += 1

    def _add(self, rows: slice, columns: slice, gradient: Tensor) -> None:
        self.total[0, rows, columns].add_(gradient)
        self.total[1, rows, columns].add_(gradient.square_())

    @torch.no_grad()
    def finish(self) -> TaylorSums:
        """Return the sums over lines; zeros if there were no sequences. Uses up the sum."""
        (R, C), count = self.weight.shape, max(self.n_tokens, 1)
        rows, columns, biases = (self.total.new_zeros(len(SUMS), n) for n in (R, C, R))
        for start in range(0, R, BLOCK):
            part = slice(start, start + BLOCK)
            g, F = self.total[0, part] / count, self.total[1, part] / count
            of_weight = terms(self.weight[part].double(), g[:, :C], F[:, :C])
            rows[:, part] = of_weight.sum(2)
            columns += of_weight.sum(1)
            if self.bias is not None:
                biases[:, part] = terms(self.bias[part].double(), g[:, C], F[:, C])
        self.total = self.total.new_empty(0)
        return TaylorSums(rows.float(), columns.float(), biases.float())


class Taylor:
    """Sums of Taylor terms over rows and columns, :class:`TaylorSums`."""

    name = "taylor"
    reads = "weight_gradient"

    def start(self, name: str, weight: Tensor, bias: Tensor | None) -> TaylorSum:
        """Return an empty sum; the terms are of the weight and bias as they are when it is finished."""
        return TaylorSum(weight, bias)

    def live(self, value: TaylorSums) -> Tensor | None:
        """None: a weight of 0 has no terms either, so a line without terms may still carry a signal."""
        return None

    def restrict(self, value: TaylorSums, kept: Tensor) -> TaylorSums:
        """The sums of some rows; those of columns stay whole, to which a row without weights adds nothing."""
        return TaylorSums(value.rows[:, kept], value.columns, value.bias[:, kept])

    def is_finite(self, value: TaylorSums) -> bool:
        """Whether all sums are finite."""
        return all(bool(torch.isfinite(part).all()) for part in (value.rows, value.columns, value.bias))

    def pack(self, value: TaylorSums) -> Tensor:
        """Rows, biases and columns beside each other, (4, 2 R + C)."""
        return torch.cat([value.rows, value.bias, value.columns], dim=1)

    def unpack(self, stored: Tensor, width: int, name: str) -> TaylorSums:
        """Cut them apart again; ``width`` is R."""
        if stored.dim() != 2 or stored.shape[0] != len(SUMS) or stored.shape[1] <= 2 * width:
            raise ValueError(
                f"shape ({len(SUMS)}, more than {2 * width}) is needed, it is {tuple(stored.shape)}"
            )
        rows, bias, columns = stored.split([width, width, stored.shape[1] - 2 * width], dim=1)
        return TaylorSums(rows, columns, bias)
