"""GPrune-LLM: units ranked among those whose behaviour over kinds of text is alike. Liu et al., 2026, arXiv:2603.13418.

Importance from one calibration text is biased towards it. (1) A unit's sensitivity is how its rank spreads over
several texts; units of one block and kind are divided into modules of like sensitivity and magnitude and ranked inside
their module alone. (2) A module that is sensitive and weak is ranked by a metric of its weights instead. (3) Every
module loses a share of its own under one budget.

No code is public, and the abstract gives no formula: all of them are reconstructed, each with a parameter, and the third
step has four forms. Its ``shares`` are ``learned``, the paper's idea: soft masks under an exact budget, by how far the
whole model's predictions move on every text (prunelab.generalization.learned); or without gradients ``uniform`` (the same
for all: the first two steps alone), ``proportional`` (``s_c = b + slope V_c``, b for the budget) or ``curves`` (what hurts
the block's output least, per parameter, on all texts pooled). What the pass asks for is an importance that one
ranking over all blocks turns into these shares: the percentile inside the module, less ``slope V_c`` or the learned share,
or the price of a unit on its module's convex error curve. ``allocation=uniform`` instead gives each block the same share.
A unit that scores 0 on every text goes before all others: in a module of rarely firing units, the metric of the weights
would rescue it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from prunelab.generalization.curve import GRID, drop_curve, output_power, prices
from prunelab.generalization.judged import Ranked, learned_importance
from prunelab.generalization.learned import Schedule, mixed
from prunelab.generalization.module import Partition, means, partition
from prunelab.generalization.reliability import module_percentiles, module_scores, unreliable
from prunelab.generalization.sensitivity import Sensitivity, dead, measure
from prunelab.generalization.weight_metric import unit_squares, weight_metric
from prunelab.pattern.base import HEADS
from prunelab.stats.domain import DOMAINS, Domain
from prunelab.stats.judge import CROSS_ENTROPY, DENSE_TO_PRUNED, Judge, Priced, Weighed
from prunelab.stats.unit_view import UnitView

# what goes before all others, and after: percentiles, less a slope, and prices lie between
FIRST, LAST = -2.0, 1e6


@dataclass(frozen=True, eq=False)
class Modules:
    """What units were divided into. ``labels`` (count,) int64: the module, -1 for a unit that scores 0 on every text,
    -2 for one that was gone before; of each module ``v`` and ``a`` (K,), its mean sensitivity and percentile on the main
    text, and ``switched`` (K,) bool: ranked without activations. ``q`` (count,) float64: the percentile in the module, 0
    without one."""

    labels: Tensor
    v: Tensor
    a: Tensor
    switched: Tensor
    q: Tensor


@dataclass(frozen=True)
class GPrune:
    """``base``: the metric on activations. ``pseudo_domains``: into how many sets the calibration text is divided where no
    other text is named (prunelab.generalization.pseudo); None = others have to be. The other fields are those of
    prunelab.generalization.

    With ``shares=learned``: ``loss`` of the masked model, its divergence from the model as it is or its cross-entropy;
    ``mixture`` and ``eta`` make one of those on all texts; ``batch``: windows of each text per step, in rotation.
    """

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    pseudo_domains: Annotated[int | None, "x >= 2"]
    base: Annotated[str, "wanda_sp | flap"]
    attention_power: Annotated[float, "x > 0"]
    sensitivity: Annotated[str, "rank_std | rank_range | cv"]
    noise_correction: bool
    partition: Annotated[str, "kmeans | grid | threshold"]
    neuron_modules: Annotated[int, "x >= 1"]
    head_modules: Annotated[int, "x >= 1"]
    min_module_frac: Annotated[float, "0 <= x <= 1"]
    reliability: Annotated[str, "sens_and_mag | rank_consistency | none | all"]
    q_v: Annotated[float, "0 <= x <= 1"]
    theta_a: Annotated[float, "0 <= x <= 1"]
    theta_r: Annotated[float, "-1 <= x <= 1"]
    scoring_source: Annotated[str, "weights | pooled_activations"]
    fallback_metric: Annotated[str, "path_norm | output_norm | group_l2"]
    use_gate: bool
    use_qk: bool
    rank_from: Annotated[str, "main | pooled"]
    shares: Annotated[str, "uniform | proportional | curves | learned"]
    slope: Annotated[float, "-1 <= x <= 1"]
    s_max: Annotated[float, "0 < x <= 1"]
    curve_bias: bool
    loss: Annotated[str, "kl | ce"]
    mixture: Annotated[str, "mean | worst | mean_plus_std"]
    eta: Annotated[float, "x >= 0"]
    steps: Annotated[int, "x >= 1"]
    batch: Annotated[int, "x >= 1"]
    lr: Annotated[float, "x > 0"]
    tau_start: Annotated[float, "x > 0"]
    tau_end: Annotated[float, "x > 0"]
    every: Annotated[int, "x >= 1"]
    patience: Annotated[int, "x >= 1"]
    held_out: Annotated[float, "0 < x < 1"]

    scope = "unit"
    needs = ("input_moments", "input_gram")
    supports = ("units",)
    allocation = "global"
    domains = 2
    judged = (("shares", "learned", ("global",)),)

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit, float64, comparable over all blocks and kinds."""
        return self.study(view)[0]

    def study(self, view: UnitView) -> tuple[Tensor, Modules]:
        """Return the importance (count,), and the modules behind it."""
        domains: tuple[Domain, ...] = view.value(view.output, DOMAINS)
        moments = [_Moments.pair(domain) for domain in domains]
        scores = torch.stack([self._score(view, one.joined(other)) for one, other in moments])
        halves = torch.stack(
            [torch.stack([self._score(view, pair[half]) for pair in moments]) for half in (0, 1)]
        )
        living = view.alive.to(scores.device) & ~dead(scores)
        result = torch.full((view.count,), FIRST, dtype=torch.float64, device=scores.device)
        modules = _no_modules(view, living)
        if bool(living.any()):
            found = measure(
                scores[:, living],
                kind=self.sensitivity,
                halves=halves[:, :, living] if self.noise_correction else None,
            )
            labels = partition(found, self._partition(view.kind))
            switched = self._switched(found, labels)
            q = module_percentiles(self._ranked(view, found, labels, switched, living), labels)
            shared = self._shared(view, domains, q, labels, found, living.nonzero()[:, 0])
            result[living] = torch.where(q > self.s_max, LAST + q, shared)
            modules.labels[living.cpu()], modules.q[living.cpu()] = labels.cpu(), q.cpu()
            own = (one.cpu() for one in (means(found.v, labels), means(found.a, labels), switched))
            modules = Modules(modules.labels, *own, q=modules.q)
        return result, modules

    def weigh(self, priced: Sequence[Priced], judge: Judge) -> Weighed:
        """Learn the modules' shares of the budget on the whole model; masks and weights of units are nobody's but its own."""
        learning = [one for one in priced if one.open]
        ranked = [Ranked(one.evidence.labels, one.evidence.q, one.price) for one in learning]
        orders = []
        for text in range(judge.n_texts):
            windows = judge.windows(text, held_out=False)
            order = torch.randperm(len(windows), generator=judge.generator(f"windows of text {text}"))
            orders.append([windows[place] for place in order.tolist()])

        def loss(factors: list[Tensor], windows: Sequence[Sequence[int]]) -> Tensor:
            masks = {one.name: mask for one, mask in zip(learning, factors, strict=True)}
            kind = DENSE_TO_PRUNED if self.loss == "kl" else CROSS_ENTROPY
            each = [judge.loss(masks, rows, text=text, kind=kind) for text, rows in enumerate(windows)]
            return mixed(torch.stack(each), self.mixture, self.eta)

        def objective(factors: list[Tensor], step: int) -> Tensor:
            judge.say("learning", step + 1, self.steps)
            turns = [
                [order[(step * self.batch + i) % len(order)] for i in range(min(self.batch, len(order)))]
                for order in orders
            ]
            return loss(factors, turns)

        judged: list[float] = []

        def hard(keep: list[Tensor]) -> float:
            held = [judge.windows(text, held_out=True) for text in range(judge.n_texts)]
            judged.append(float(loss([one.double() for one in keep], held)))
            return judged[-1]

        schedule = Schedule(self.steps, self.lr, self.tau_start, self.tau_end, self.every, self.patience)
        spent = learned_importance(
            ranked, judge.budget, self.s_max, judge.min_units, schedule, FIRST, objective, hard
        )
        found = spent.shares
        row = {"modules": 0, "steps": 0, "uniform": None, "learned": None, "from_step": None}
        if found is not None:
            row = {
                "modules": len(found.shares), "steps": len(found.losses), "uniform": judged[0],
                "learned": found.loss, "from_step": found.step,
            }  # fmt: skip
        names = (one.name for one in learning)
        return Weighed(dict(zip(names, spent.importance, strict=True)), tables={"learning": [row]})

    def explain(self, evidence: Modules, gone: Tensor) -> dict[str, list[dict[str, Any]]]:
        """Return ``modules``, a row for each: units, mean sensitivity V and percentile A, what ranked them, and how many of
        them are ``gone`` (count,) bool; the first row is of units that score 0 on every text, if there are any."""
        rows = []
        for module in range(-1, len(evidence.v)):
            members = evidence.labels == module
            units, removed = int(members.sum()), int((members & gone).sum())
            row: dict[str, Any] = {
                "module": module,
                "units": units,
                "V": None,
                "A": None,
                "metric": "none: all scores are 0",
            }
            if module >= 0:
                metric = self._metric(bool(evidence.switched[module]))
                row |= {"V": float(evidence.v[module]), "A": float(evidence.a[module]), "metric": metric}
            if units:
                rows.append(row | {"gone": removed, "share": removed / units})
        return {"modules": rows}

    def _metric(self, switched: bool) -> str:
        """What ranks the units of a module."""
        if switched and self.scoring_source == "weights":
            return self.fallback_metric
        return f"{self.base}, all texts" if switched or self.rank_from == "pooled" else self.base

    def _grid(self, n: int) -> list[float]:
        """The shares of n units at which their curve is known, each of whole units."""
        asked = [share for share in GRID if share < self.s_max]
        return sorted({round(share * n) / n for share in (*asked, self.s_max)})

    def _score(self, view: UnitView, moments: _Moments) -> Tensor:
        """The base metric (count,), float64: summed over a unit's channels."""
        W = view.output.W.double()
        if self.base == "wanda_sp":
            return view.output.per_unit(W.abs().mean(0) * moments.square.sqrt())
        fluctuation = moments.variance * W.square().sum(0)
        return view.output.per_unit(fluctuation**self.attention_power if view.kind == HEADS else fluctuation)

    def _partition(self, kind: str) -> Partition:
        modules, least = (self.head_modules, 2) if kind == HEADS else (self.neuron_modules, 4)
        return Partition(self.partition, modules, self.min_module_frac, least, quantile=self.q_v)

    def _switched(self, found: Sensitivity, labels: Tensor) -> Tensor:
        """Which modules (K,) bool are ranked without activations."""
        return unreliable(
            found,
            labels,
            rule=self.reliability,
            quantile=self.q_v,
            magnitude=self.theta_a,
            consistency=self.theta_r,
        )

    def _ranked(
        self, view: UnitView, found: Sensitivity, labels: Tensor, switched: Tensor, living: Tensor
    ) -> Tensor:
        """What units are ranked by inside their module, (living,)."""
        base = found.a if self.rank_from == "main" else found.u
        if self.scoring_source == "pooled_activations":
            return module_scores(base, found.u, labels, switched)
        return module_scores(base, self._fallback(view)[living], labels, switched)

    def _fallback(self, view: UnitView) -> Tensor:
        squares = {
            member.role: unit_squares(member.W, member.axis, member.index.to(member.W.device))
            for member in view.members
        }
        up = next((member for member in view.members if member.role == "up"), None)
        if up is not None and up.bias is not None and "gate" not in squares:
            squares["up"] = squares["up"] + up.per_unit(up.bias.double().square())
        return weight_metric(squares, self.fallback_metric, use_gate=self.use_gate, use_qk=self.use_qk)

    def _shared(
        self, view: UnitView, domains: tuple[Domain, ...], q: Tensor, labels: Tensor, found: Sensitivity, units: Tensor
    ) -> Tensor:  # fmt: skip
        """The importance of the living ``units`` from their percentiles ``q`` in their modules."""
        if self.shares in ("uniform", "learned"):  # what is learned comes in weigh
            return q
        if self.shares == "proportional":
            return q - self.slope * means(found.v, labels)[labels]
        W, index = view.output.W, view.output.index.to(q.device)
        moment, mean = _pooled(domains)
        power, result = output_power(W, moment), torch.empty_like(q)
        for j in range(int(labels.max()) + 1):
            places = (labels == j).nonzero()[:, 0]
            columns = index[units[places[torch.argsort(q[places])]]]
            n = len(places)
            grid = self._grid(n)
            errors = drop_curve(W, moment, columns, power, mean=mean if self.curve_bias else None, grid=grid)
            result[places] = prices(errors, float(n * view.cost), q[places], grid=grid)
        return result


def _no_modules(view: UnitView, living: Tensor) -> Modules:
    """Of units none of which is in a module yet."""
    labels = torch.full((view.count,), -2, dtype=torch.int64)
    labels[view.alive.cpu() & ~living.cpu()] = -1
    none, q = torch.zeros(0), torch.zeros(view.count, dtype=torch.float64)
    return Modules(labels, none, none, none.bool(), q)


@dataclass(frozen=True, eq=False)
class _Moments:
    """``mean`` (C,) and the sum of squares around it ``spread`` (C,), float64, over ``n`` tokens."""

    mean: Tensor
    spread: Tensor
    n: int

    @staticmethod
    def pair(domain: Domain) -> tuple[_Moments, _Moments]:
        """Those of a domain's halves."""
        even, odd = (
            _Moments(
                half["input_moments"].mean.double(), half["input_moments"].variance.double() * (n - 1), n
            )
            for half, n in zip(domain.halves, domain.n_tokens, strict=True)
        )
        return even, odd

    def joined(self, other: _Moments) -> _Moments:
        """Of the tokens of both (Chan et al.)."""
        n, apart = self.n + other.n, other.mean - self.mean
        spread = self.spread + other.spread + apart.square() * (self.n * other.n / n)
        return _Moments(self.mean + apart * (other.n / n), spread, n)

    @property
    def variance(self) -> Tensor:
        """Sample variance (C,)."""
        return self.spread / max(self.n - 1, 1)

    @property
    def square(self) -> Tensor:
        """Mean square (C,)."""
        return self.spread / self.n + self.mean.square()


def _pooled(domains: tuple[Domain, ...]) -> tuple[Tensor, Tensor]:
    """Return ``E[z z^T]`` (C, C) and ``E[z]`` (C,) over the tokens of all domains."""
    halves = [(half, n) for domain in domains for half, n in zip(domain.halves, domain.n_tokens, strict=True)]
    total = sum(n for _, n in halves)
    moment = torch.stack([half["input_gram"].matrix * (n / total) for half, n in halves]).sum(0)
    mean = torch.stack([half["input_moments"].mean.double() * (n / total) for half, n in halves]).sum(0)
    return moment, mean
