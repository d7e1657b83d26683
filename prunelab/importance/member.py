"""One number per unit from those of its members' lines, as LLM-Pruner combines them (arXiv:2305.11627, its code).

A unit has members: the gate, up and down map's lines of a neuron, or the query, key, value and output map's lines of
an attention head. In the code members are combined channel by channel, then the channels of a head are added. Where
several query heads share a key and value head their members are longer; they are first folded to the shortest, adding
the lines of the r query heads at the same place. The unit's lines come head after head (the layout of Hugging Face:
query head q belongs to key head ``q // r``), whereas the published code folds as if it were ``q mod n_kv``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# p members -> one; "last" is the output map, the last to run, of which the paper speaks (the code's "second" takes the
# second of the order in which its tracer meets them)
REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda members: members.sum(0),
    "mean": lambda members: members.mean(0),
    "max": lambda members: members.amax(0),
    "prod": lambda members: members.prod(0),
    "first": lambda members: members[0],
    "last": lambda members: members[-1],
}


def combine(members: Sequence[Tensor], reduction: str) -> Tensor:
    """Return a score per unit, (units,), from one (units, lines) per member, in forward order.

    ``reduction``: of ``REDUCTIONS``. Lines may differ between members in number, as multiples of the shortest.
    """
    shortest = min(member.shape[1] for member in members)
    return REDUCTIONS[reduction](torch.stack([fold(member, shortest) for member in members])).sum(1)


def fold(lines: Tensor, width: int) -> Tensor:
    """Return ``lines`` (units, r * width), heads of ``width`` lines one after the other, added up: (units, width)."""
    units, n = lines.shape
    if n % width:
        raise ValueError(f"{n} lines of a member are no multiple of the {width} of another")
    return lines.reshape(units, n // width, width).sum(1)


def coarse(lines: Tensor, slices: str) -> Tensor:
    """Return |sum w g| of every unit's member, (units,), from the signed sums of its lines (units, lines).

    ``slices``: what one absolute value is taken over: ``row``, every line (a row of an in-map, a column of the output
    map), as LLM-Pruner's ``vector`` does; or ``unit``, the whole member, inside which lines may cancel.
    """
    if slices not in ("row", "unit"):
        raise ValueError(f"slices={slices!r}: allowed is 'row' or 'unit'")
    return lines.abs().sum(1) if slices == "row" else lines.sum(1).abs()


def coherence(coarse: Tensor, fine: Tensor) -> Tensor:
    """Return coarse / fine, elementwise: which part of what single weights do remains of the whole slice.

    In [0, 1] where ``fine`` are first-order sums (sum |w g|); 0 where they are 0.
    """
    return torch.where(fine == 0, 0.0, coarse / torch.where(fine == 0, 1.0, fine))
