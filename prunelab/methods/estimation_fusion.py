"""Adaptive estimation fusion: a coarse and a fine estimate of a unit's importance, blended unit by unit. Liu et al., AAAI
2025 (HyWIA), arXiv:2403.10799.

Coarse: the absolute value of what scaling a whole slice does to the loss, in which weights cancel. Fine: what single
weights do, added up. Both from one set of gradients (prunelab.stats.taylor), per member of a unit; normalised inside a
block and kind; blended by weights that attention over the two gives every unit (prunelab.importance.fusion: formulas,
and what of them is a reconstruction). ``mode=fixed`` blends everywhere with ``fixed_weight``: 1 is LLM-Pruner's vector,
0 its element1 or mixed; ``product`` is the geometric mean.

Every block and kind has mean importance 1 with ``norm=mean``, so in one ranking (``allocation=global``) a head competes
with a neuron of the same standing among its own. Dividing by a unit's parameters as well, as a cost-aware ranking of
equally scaled scores would, makes heads two orders cheaper than neurons, and all of them go first: not done.

Modes that fit the blend to measured losses are in prunelab.importance.probe; a method sees one block at a time and
cannot ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.importance import fusion
from prunelab.importance.member import coarse
from prunelab.stats.unit_view import Member, UnitView


@dataclass(frozen=True)
class EstimationFusion:
    """``fine_order``: terms of the fine estimate, first order or with the second. ``coarse_slice``: what is taken as one
    slice, a line or a unit's whole member. ``members``: all, or ``unique``: without a gated FFN's up map, whose coarse
    estimate is that of the down map. ``bias``: whether a row's bias counts as one of its weights."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    mode: Annotated[str, "attention | fixed | product"]
    fixed_weight: Annotated[float, "0 <= x <= 1"]
    fine_order: Annotated[str, "element1 | mixed"]
    coarse_slice: Annotated[str, "row | unit"]
    members: Annotated[str, "all | unique"]
    bias: bool
    norm: Annotated[str, "mean | max | sum | rank"]
    temperature: Annotated[float, "x > 0"]
    query_mix: Annotated[float, "0 <= x <= 1"]

    scope = "unit"
    needs = ("taylor",)
    supports = ("units",)

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit, float64, in units of its block and kind; removed ones have 0."""
        C, E = self.estimates(view)
        alive = view.alive.to(C.device)
        population = fusion.build_population(C[alive], E[alive], self.norm, view.kind)
        scores = C.new_zeros(view.count)
        scores[alive] = self._fuse(population)
        return scores

    def estimates(self, view: UnitView) -> tuple[Tensor, Tensor]:
        """Return the coarse and the fine estimate (count, p) of every unit's members, nats, float64."""
        gated = any(member.role == "gate" for member in view.members)
        chosen = [m for m in view.members if self.members == "all" or not (gated and m.role == "up")]
        C = torch.stack([coarse(self._lines(view, one, "signed"), self.coarse_slice) for one in chosen], 1)
        E = torch.stack([self._lines(view, one, self.fine_order).sum(1) for one in chosen], 1)
        return C, E

    def _lines(self, view: UnitView, member: Member, kind: str) -> Tensor:
        """Sums (count, lines) over the weights of a member's lines."""
        sums = view.value(member, "taylor").of(kind, member.axis, bias=self.bias).double()
        return sums[member.index.to(sums.device)]

    def _fuse(self, population: fusion.Population) -> Tensor:
        if self.mode == "product":
            return fusion.product(population)
        if self.mode == "fixed":
            return fusion.fuse(population, self.fixed_weight)
        a = fusion.attention_weights(population, temperature=self.temperature, query_mix=self.query_mix)
        return fusion.fuse(population, a)
