"""How far the hidden states of a pruned model are from those of the dense one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from prunelab.models.activation import Activations
from prunelab.models.stream import Stream


@torch.no_grad()
def squares(
    stream: Stream, target: Activations, transform: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> tuple[float, float]:
    """Return ``||target - transform(stream)||_F^2`` and ``||target||_F^2`` over all sequences, summed in float64.

    ``transform`` takes and returns hidden states (b, seq_len, d).
    """
    error = norm = 0.0
    for rows in stream.batches():
        wide = target.read(rows, stream.like).double()
        norm += float(wide.square().sum())
        error += float((wide - transform(stream.read(rows)).double()).square().sum())
    return error, norm


def relative_error(error_sq: float, norm_sq: float) -> float:
    """``error_sq / norm_sq``; 0 for 0 / 0 and ``inf`` for anything that is not finite."""
    if error_sq == 0.0:
        return 0.0
    value = error_sq / norm_sq if norm_sq > 0.0 else math.inf
    return value if math.isfinite(value) else math.inf
