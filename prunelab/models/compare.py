"""How far the hidden states of a pruned model are from those of the dense one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunelab.models.activation import Activations
from prunelab.models.stream import Stream


@torch.no_grad()
def squares(
    stream: Stream, target: Activations, transform: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> tuple[float, float]:
    """Return ``||target - transform(stream)||_F^2`` and ``||target||_F^2`` over all sequences.

    ``transform`` takes and returns hidden states (b, seq_len, d). Sums are float64, a sequence at a time and then
    exact, so that they do not depend on b.
    """
    errors, norms = list[float](), list[float]()
    for rows in stream.batches():
        pair = target.read(rows, stream.like), transform(stream.read(rows))
        for wanted, reached in zip(*pair, strict=True):
            norms.append(float(wanted.double().square().sum()))
            errors.append(float((wanted.double() - reached.double()).square().sum()))
    return exact_sum(errors), exact_sum(norms)


def exact_sum(values: Sequence[float]) -> float:
    """The sum of float64 numbers, rounded once: it does not depend on their order. NaN where there is none."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # too large, or infinities of both signs: a broken model's numbers
        return math.nan


def relative_error(error_sq: float, norm_sq: float) -> float:
    """``error_sq / norm_sq``; 0 for 0 / 0 and ``inf`` for anything that is not finite."""
    if error_sq == 0.0:
        return 0.0
    value = error_sq / norm_sq if norm_sq > 0.0 else math.inf
    return value if math.isfinite(value) else math.inf
