"""What is left to do once it is known which neurons go: every one's partner that stays, whatever went after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.information.search import Removals


@dataclass(frozen=True, eq=False)
class Plan:
    """``removed`` (q,) int64, and for each the ``partner`` (q,) int64 that stays, or -1: there is none."""

    removed: Tensor
    partner: Tensor


def first(removals: Removals, q: int) -> Plan:
    """Return the plan for the first ``q`` removals; q <= their number."""
    return resolve(removals, removals.order[:q])


def resolve(removals: Removals, removed: Tensor) -> Plan:
    """Return the plan for the neurons ``removed`` (q,), whoever chose them.

    Where a neuron's partner is removed as well its partner's partner takes its place, and so on. A partner went after
    the neuron, so chains end: at one that stays, or, for a neuron that was not found redundant itself, at -1.
    """
    towards = dict(zip(removals.order.tolist(), removals.partner.tolist(), strict=True))
    gone = set(removed.tolist())
    partners = []
    for number in removed.tolist():
        while number in gone:
            number = towards.get(number, -1)
        partners.append(number)
    return Plan(removed.clone(), torch.tensor(partners, dtype=torch.int64))
