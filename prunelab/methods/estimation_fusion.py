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

Two modes fit the blend to measured losses (prunelab.importance.probe): probes leave a few random units of one block and
kind out of the whole model. ``learned``: attention with learned maps, a weight per unit; unless it ranks probes that were held
out better than ``attention`` does, that is used, with scales fitted to the same probes. ``uncertainty`` (SAAP,
arXiv:2412.15127): two noises per block and kind. Both give every block and kind a scale of the loss, by which importance is
multiplied, in nats (``learned``) or in standard deviations of the probes' changes (``uncertainty``): it orders nothing inside
a block and kind and counts where they are compared. Since it is what a unit adds to the loss wherever it is, it may be
divided by the unit's parameters there (``per_parameter``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from prunelab.importance import fusion
from prunelab.importance.member import coarse
from prunelab.importance.probe import SMALLEST, Descent, Probe, draw_probes, fit_learned, fit_uncertainty
from prunelab.stats.judge import Judge, Priced, Weighed
from prunelab.stats.unit_view import Member, UnitView


@dataclass(frozen=True)
class EstimationFusion:
    """``fine_order``: terms of the fine estimate, first order or with the second. ``coarse_slice``: what is taken as one
    slice, a line or a unit's whole member. ``members``: all, or ``unique``: without a gated FFN's up map, whose coarse
    estimate is that of the down map. ``bias``: whether a row's bias counts as one of its weights.

    From ``probes`` on of modes that fit: how many, of which share of a population's units each, which share of them is held
    out; ``width`` of queries and keys; ``steps``, ``rate`` and ``decay`` of Adam. ``log_term``: with ``uncertainty``, whether
    log(sigma_c sigma_f), one number for a population, counts; no probe can tell it, and it makes dear what matters little.
    """

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    mode: Annotated[str, "attention | fixed | product | learned | uncertainty"]
    fixed_weight: Annotated[float, "0 <= x <= 1"]
    fine_order: Annotated[str, "element1 | mixed"]
    coarse_slice: Annotated[str, "row | unit"]
    members: Annotated[str, "all | unique"]
    bias: bool
    norm: Annotated[str, "mean | max | sum | rank"]
    temperature: Annotated[float, "x > 0"]
    query_mix: Annotated[float, "0 <= x <= 1"]
    probes: Annotated[int, "x >= 8"]
    probe_fraction: Annotated[float, "0 < x < 1"]
    probes_held_out: Annotated[float, "0 < x < 1"]
    width: Annotated[int, "x >= 1"]
    steps: Annotated[int, "x >= 1"]
    rate: Annotated[float, "x > 0"]
    decay: Annotated[float, "x >= 0"]
    log_term: bool
    per_parameter: bool

    scope = "unit"
    needs = ("taylor",)
    supports = ("units",)
    judged = (
        ("mode", "learned", ("uniform", "global", "by_kind")),
        ("mode", "uncertainty", ("uniform", "global", "by_kind")),
    )

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit, float64, in units of its block and kind; removed ones have 0."""
        return self.study(view)[0]

    def study(self, view: UnitView) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the importance (count,), without what modes that fit add, and the estimates behind it."""
        C, E = self.estimates(view)
        alive = view.alive.to(C.device)
        population = fusion.build_population(C[alive], E[alive], self.norm, view.kind)
        scores = C.new_zeros(view.count)
        scores[alive] = self._fuse(population)
        return scores, (C.cpu(), E.cpu())

    def weigh(self, priced: Sequence[Priced], judge: Judge) -> Weighed:
        """Probe the model, fit the blend, and scale it, over the blocks and kinds whose units may go."""
        asked = [one for one in priced if one.open]
        alive = [one.alive.nonzero()[:, 0] for one in asked]
        populations = [
            fusion.build_population(
                one.evidence[0][rows], one.evidence[1][rows], self.norm, one.kind, one.depth
            )
            for one, rows in zip(asked, alive, strict=True)
        ]
        generator = judge.generator("probes")
        drawn = draw_probes(populations, self.probes, self.probe_fraction, generator)
        changes = judge.changes([(asked[number].name, alive[number][units]) for number, units in drawn])
        probes = [Probe(*one, change) for one, change in zip(drawn, changes, strict=True)]
        fitted = self._learned if self.mode == "learned" else self._uncertainty
        fused, blend, told = fitted(populations, probes, generator)
        importance, rows = {}, []
        for one, here, population, scores, (weight, scale) in zip(
            asked, alive, populations, fused, blend, strict=True
        ):
            importance[one.name] = torch.zeros(len(one.alive), dtype=torch.float64)
            importance[one.name][here] = scores / (one.price if self.per_parameter else 1.0)
            mine = sum(probe.population == len(rows) for probe in probes)
            coarse = float(weight.mean()) if len(population.coarse) else None
            where = {"block": one.block, "kind": one.kind, "units": len(here)}
            rows.append(where | {"probes": mine, "weight": coarse, "scale": scale})
        return Weighed(importance, tables={"fit": [told], "blend": rows})

    def _learned(
        self, populations: Sequence[fusion.Population], probes: Sequence[Probe], generator: torch.Generator
    ) -> tuple[list[Tensor], list[tuple[Tensor, float]], dict[str, Any]]:
        """Return scores and (weights of the coarse estimate, scale) of every population, and a row about the fit."""
        found = fit_learned(
            populations, probes, width=self.width, temperature=self.temperature, query_mix=self.query_mix,
            generator=generator, held_out=self.probes_held_out,
            descent=Descent(self.steps, self.rate, self.decay),
        )  # fmt: skip
        # a scale of 0 would leave a population's units in no order
        least = SMALLEST * (max(found.scales) or 1.0)
        scales = [max(scale, least) for scale in found.scales]
        scored = zip(populations, found.weights, scales, strict=True)
        fused = [fusion.fuse(one, a) * scale for one, a, scale in scored]
        told = {
            "probes": len(probes), "used": "learned" if found.learned else "attention",
            "rho_learned": found.rho_learned, "rho_attention": found.rho_attention,
        }  # fmt: skip
        return fused, list(zip(found.weights, scales, strict=True)), told

    def _uncertainty(
        self, populations: Sequence[fusion.Population], probes: Sequence[Probe], generator: torch.Generator
    ) -> tuple[list[Tensor], list[tuple[Tensor, float]], dict[str, Any]]:
        """The same of noises; a population's scale is what its weights add up to."""
        sigmas = fit_uncertainty(populations, probes, Descent(self.steps, self.rate, self.decay))
        fused, blend = [], []
        for one, both in zip(populations, sigmas, strict=True):
            scores = fusion.uncertainty(one, *both)
            fused.append(scores if self.log_term else scores - math.log(both[0] * both[1]))
            weight = torch.tensor([fusion.uncertainty_weight(*both)], dtype=torch.float64)
            blend.append((weight, (both[0] ** -2 + both[1] ** -2) / 2))
        told = {"probes": len(probes), "used": "uncertainty", "rho_learned": None, "rho_attention": None}
        return fused, blend, told

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
