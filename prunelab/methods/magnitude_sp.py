"""Magnitude of whole units: norms of the output map's columns, or of all members. No data, no compensation.

``members="output"`` (arXiv:2312.11983's code, ``mag_sp``): the sum of ``||W_out[:, c]||_2`` over the unit's columns.
``members="all"`` (arXiv:2305.11627's code, ``l1`` and ``l2``): ``sum |w|^p`` of each member's lines, without a root,
the mean over members. A KV group's queries are those of its own heads, q // r; that code folds them as q mod n_kv.
Of a whole attention or MLP (which is ours) lines are rows, of the output map ``||W_out[r, :]||_2``; kinds are best ranked
apart (``allocation=by_kind``), as their sizes differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.stats.unit_view import UnitView


@dataclass(frozen=True)
class MagnitudeSP:
    """Importance from the weights alone. ``p``: for ``members="all"``."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    members: Annotated[str, "output | all"]
    p: Annotated[int, "1 <= x <= 2"]

    scope = "unit"
    needs = ()
    supports = ("units",)
    units = ("neurons", "heads", "attention", "ffn")

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit, float64."""
        if self.members == "output":
            return view.output.per_unit(view.output.W.double().norm(dim=1 - view.output.axis))
        sums = [
            member.per_unit(member.W.double().abs().pow(self.p).sum(1 - member.axis))
            for member in view.members
        ]
        return torch.stack(sums).mean(0)
