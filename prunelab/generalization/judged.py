"""From modules of all blocks to an importance whose one ranking takes the shares that were learned. arXiv:2603.13418, step 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.generalization.budget import Modules, dead_first, lowest
from prunelab.generalization.learned import Learned, Schedule, learn

GONE, DEAD = -2, -1  # labels: of units that earlier shots removed, and of those that score 0 on every text
_NEAREST = 1e-9  # of an importance to 0, where what goes and what stays part
_NOTHING = 1e-6  # of all parameters


@dataclass(frozen=True, eq=False)
class Ranked:
    """The units of one kind of one block: ``labels`` (count,) int64, the module or ``GONE`` or ``DEAD``; ``percentiles``
    (count,) float64 inside the module; ``price`` of one unit in what the budget counts."""

    labels: Tensor
    percentiles: Tensor
    price: float


@dataclass(frozen=True, eq=False)
class Spent:
    """``importance`` (count,) float64 per :class:`Ranked`: below 0 goes. ``shares``: None if no share was to be learned."""

    importance: list[Tensor]
    shares: Learned | None


def learned_importance(
    ranked: Sequence[Ranked], budget: float, high: float, min_units: int, schedule: Schedule, first: float,
    objective: Callable[[list[Tensor], int], Tensor], judge: Callable[[list[Tensor]], float],
) -> Spent:  # fmt: skip
    """Return the importance of all units once their modules' shares, ``high`` at most, are learned under ``budget``.

    ``budget`` counts what earlier shots removed. Dead units go first, with importance ``first``; what they leave of the budget
    is the modules'. ``objective(masks, step)`` and ``judge(keep)`` get one tensor (count,) per kind and block: soft factors
    float64 and hard ones bool. A unit's importance is its percentile less its module's share in whole units. Raises
    ConfigError where modules cannot give what is left.
    """
    sizes = [len(one.labels) for one in ranked]
    labels, q = torch.cat([one.labels for one in ranked]), torch.cat([one.percentiles for one in ranked])
    layers = torch.repeat_interleave(torch.arange(len(ranked)), torch.tensor(sizes))
    prices = torch.tensor([one.price for one in ranked], dtype=torch.float64)[layers]
    here = labels != GONE
    left = budget - float(prices[~here].sum())
    dead, left_over = dead_first((labels == DEAD)[here], prices[here], layers[here], left, min_units)
    fixed = torch.where(labels == DEAD, 1.0, torch.where(here, 1.0, 0.0)).double()
    fixed[here.nonzero()[dead, 0]] = 0.0

    living = (labels >= 0).nonzero()[:, 0]
    starts = torch.tensor([0, *(max(-1, int(one.labels.max())) + 1 for one in ranked)]).cumsum(0)
    numbers = labels[living] + starts[layers[living]]
    counts = torch.bincount(numbers, minlength=int(starts[-1]))
    owner = torch.zeros(len(counts), dtype=torch.int64)
    owner[numbers] = layers[living]
    modules = Modules(
        counts, torch.tensor([ranked[at].price for at in owner.tolist()]).double(), owner, 0.0, high
    )

    def whole(factors: Tensor) -> list[Tensor]:
        return list(fixed.index_copy(0, living, factors).split(sizes))

    found, taken = None, torch.zeros_like(counts)
    total = float(modules.sizes.sum())
    if left_over > _NOTHING * total:
        with torch.enable_grad():
            found = learn(
                lambda masks, step: objective(whole(masks), step),
                lambda keep: judge([mask > 0 for mask in whole(keep.double())]),
                q[living], numbers, modules, left_over, schedule, min_units=min_units,
            )  # fmt: skip
        taken = found.taken
    keep = lowest(q[living], numbers, taken)
    apart = q[living] - (taken / counts.clamp_min(1))[numbers]
    importance = torch.full(labels.shape, first, dtype=torch.float64)
    importance[living] = torch.where(keep, apart.clamp_min(_NEAREST), apart.clamp_max(-_NEAREST))
    return Spent(list(importance.split(sizes)), found)
