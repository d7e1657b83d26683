"""Mutual information: of two units that say the same one goes. Huang, Song and Pao, 2024, arXiv:2406.00030.

What enters a block's output map at a few calibration tokens is standardised; the information between two units is
estimated by matrix-based Renyi entropy (prunelab.information.renyi); of redundant pairs one unit goes, and, with
``sparsity.compensation=merge``, the other takes over its part (prunelab.information.merge). No labels, no training.

The paper publishes no code and leaves open how wide the kernels are, from which value on two units are redundant,
which of the two goes, and whether survivors change: those are fields here, and their values reconstructions
(prunelab.information says where). ``mutual_information.yaml`` is prunelab's setting for language models, deterministic;
``mi_paper.yaml`` is as near as the paper lets one get (random pairs, alpha 1.01, four seeds, of which the one with the
smallest divergence from the dense model is kept); ``mi_fast.yaml`` asks correlations only.

The paper prunes neurons (``sparsity.kinds=[neurons]``). Heads are an extension: a KV group's slice of the context is
one variable, kernels take distances between vectors, their width is the median rule's, and merging gives their mean.

An importance is minus the value of the pair that made a unit redundant when it went, so one ranking over blocks
(``allocation=global``) takes the most redundant first, wherever they are: one threshold for all layers. Dead units
come before all others. Units that no partner is left for, or whose value chance alone would give
(``floor_deviations``), come last, by norm: they go only where the ratio leaves no choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.information.bandwidth import Width, choose_width
from prunelab.information.cluster import clustered
from prunelab.information.explain import known, removed_rows, spectrum
from prunelab.information.gaussian import Gaussian
from prunelab.information.merge import JOINT, Moments, merge, merge_jointly
from prunelab.information.pairs import Estimator, Values, chance, lookup, remembered
from prunelab.information.plan import resolve
from prunelab.information.redundancy import Seen, group_rows, look, spectrum_rows, strongest, token_rows
from prunelab.information.renyi import Renyi
from prunelab.information.samples import Samples, standardised
from prunelab.information.search import Neurons, Removals, all_pairs_greedy, quantile_of, random_pairs
from prunelab.stats.base import Values as Statistics
from prunelab.stats.judge import Judge, Priced, Weighed
from prunelab.stats.unit_view import Member, UnitView

DEAD = -1e6  # importance: below minus any information
NULL_PAIRS = 500  # shuffled pairs behind a floor
LEAST_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Study:
    """What was found in one kind of one block. ``removals`` speak of unit numbers. ``floor``: the value that chance
    gives; None if not asked. ``nearest`` (count,): the value of every unit with its most redundant partner, nan where
    not all pairs were looked at. ``n_samples``: tokens that it was seen on; ``here``: the units that there were, by number.
    ``seen``: what all pairs say of those, where all were looked at. ``top`` (k, count): the samples that move each most."""

    removals: Removals
    width: Width | None
    floor: float | None
    nearest: Tensor
    n_samples: int
    here: Tensor
    seen: Seen | None
    top: Tensor


@dataclass(frozen=True)
class MutualInformation:
    """Importance from what units say about each other.

    ``n_samples``: tokens, fewer if the calibration set has fewer. ``bandwidth``: a rule, or ``fixed``: ``width``.
    ``bw_neurons``, ``bw_null_weight``: of the rule ``contrast``. ``clip``: deviations. ``null_draws``: shuffles whose
    mean is subtracted; 0 = none. ``quantile`` of the values of random pairs, or ``threshold``: from there on two units
    are redundant, for random pairs and the victim rule ``central``. ``max_trials``: draws per threshold; null = 50 per
    unit. ``most``: of the units; the search ends when so many went, and the others count as not redundant.
    ``floor_deviations``: above the mean of shuffled pairs; null = no floor. ``n_clusters``: null = one per 64
    units. ``min_active``: a neuron that is not 0 in fewer samples is compared by norm. ``merging``, ``min_r2``
    and ``unmerged``: see prunelab.information.merge.
    ``n_seeds``: searches of every block; with ``select=kl`` that of which the whole model, pruned so and not yet made up for,
    is nearest to what it was on ``held_out`` of the windows.
    """

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    estimator: Annotated[str, "renyi_matrix | gaussian"]
    alpha: Annotated[float, "x > 0"]
    n_samples: Annotated[int, "2 <= x <= 1024"]
    standardize: bool
    clip: Annotated[float | None, "x > 0"]
    bandwidth: Annotated[str, "contrast | silverman | median | alignment | fixed"]
    width: Annotated[float | None, "x > 0"]
    bw_neurons: Annotated[int, "x >= 1"]
    bw_null_weight: Annotated[float, "x >= 0"]
    normalize: Annotated[str, "self | min_entropy | none"]
    null_draws: Annotated[int, "x >= 0"]
    precision: Annotated[str, "float32 | float64"]
    search: Annotated[str, "all_pairs_greedy | random_pairs | cluster"]
    victim: Annotated[str, "lower_norm | lower_entropy | central | random"]
    quantile: Annotated[float | None, "0 <= x <= 1"]
    threshold: Annotated[float | None, "x >= 0"]
    threshold_decay: Annotated[float, "0 < x < 1"]
    max_trials: Annotated[int | None, "x >= 1"]
    most: Annotated[float, "0 < x <= 1"]
    floor_deviations: Annotated[float | None, "x >= 0"]
    n_clusters: Annotated[int | None, "x >= 1"]
    min_active: Annotated[int, "x >= 0"]
    merging: Annotated[str, "pairwise | joint"]
    min_r2: Annotated[float, "0 <= x <= 1"]
    unmerged: Annotated[str, "mean | nothing"]
    n_seeds: Annotated[int, "x >= 1"]
    select: Annotated[str, "first | kl"]
    kl_direction: Annotated[str, "dense_to_pruned | pruned_to_dense"]
    held_out: Annotated[float, "0 < x < 1"]

    scope = "unit"
    needs = ("input_samples", "input_moments", "input_gram")
    supports = ("units",)
    compensation = "merge"
    kinds = ("neurons",)  # the paper's; attention is an extension
    tells_tokens = True  # in explain, by the number of a sample
    judged = (("select", "kl", ("uniform", "global", "by_kind")),)

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit, float64."""
        return self.study(view)[0]

    def study(self, view: UnitView) -> tuple[Tensor, Any]:
        """Return the importance (count,), and what is behind it: a study, or with ``select=kl`` all runs until
        :meth:`weigh` keeps one."""
        self._check()
        runs = self._runs(view)
        return runs[0] if self.select == "first" else (runs[0][0], runs)

    def weigh(self, priced: Sequence[Priced], judge: Judge) -> Weighed:
        """Keep the run with the smallest divergence on held-out windows; of equals the first."""
        rows: list[dict[str, Any]] = []
        windows = judge.windows(0, held_out=True)
        for run in range(self.n_seeds):
            keep = judge.keep({one.name: one.evidence[run][0] for one in priced})
            masks = {name: kept.double() for name, kept in keep.items()}
            found = float(judge.loss(masks, windows, kind=self.kl_direction))
            if not math.isfinite(found):
                raise ModelError(f"run {run} diverges by {found}; use model.dtype=float32.")
            rows.append({"run": run, "kl": found, "kept": False})
            judge.say("runs", run + 1, self.n_seeds)
        best = min(rows, key=lambda row: row["kl"])
        best["kept"] = True
        importance = {one.name: one.evidence[best["run"]][0] for one in priced}
        evidence = {one.name: one.evidence[best["run"]][1] for one in priced}
        return Weighed(importance, evidence, {"runs": rows})

    def _runs(self, view: UnitView) -> list[tuple[Tensor, Study]]:
        """Return the importance (count,) and what is behind it for every search."""
        here = view.alive.nonzero()[:, 0]
        index = view.output.index[here]
        Z = view.value(view.output, "input_samples")[: self.n_samples]
        samples = standardised(
            Z[:, index.to(Z.device)].flatten(1), each=self.standardize, clip=self.clip,
            min_active=self.min_active, dtype=getattr(torch, self.precision),
        )  # fmt: skip
        samples, norm = _by_unit(samples, index.shape[1]), _norms(view.output, index, samples.deviation)
        width = self._width(view, samples)
        estimator = self._estimator(width)
        entropy = torch.zeros_like(norm)
        if self.victim == "lower_entropy" and width is not None:
            entropy = Renyi(width.sigma, self.alpha).entropies(samples.columns)
        neurons = Neurons(samples.columns, samples.dead, samples.rare, norm, entropy, self.victim)
        found, floor, seen = self._search(estimator, neurons, view.generator)
        values = torch.full((view.count,), math.nan, dtype=torch.float64)
        if seen is not None:
            values[here] = seen.nearest
        top = strongest(Z, view.output.index)
        runs = []
        for removals in found:
            importance = torch.zeros(view.count, dtype=torch.float64)
            importance[here] = _importance(removals, norm)
            named = _named(removals, here)
            runs.append((importance, Study(named, width, floor, values, len(Z), here, seen, top)))
        return runs

    def explain(self, evidence: Study, gone: Tensor) -> dict[str, list[dict[str, Any]]]:
        """Return ``removed``, a row per unit of ``gone`` (count,) bool; ``redundancy``, one of the whole layer: settings,
        how wide the kernels are, from where on units count as redundant, and quantiles of the nearest partners' values;
        ``spectrum``, those values sorted; ``groups`` of units that all say the same; ``tokens`` that move both of the
        most redundant pairs most."""
        removals, width, seen = evidence.removals, evidence.width, evidence.seen
        layer = {
            "units": len(evidence.here), "gone": int(gone.sum()), "redundant": len(removals.order),
            "estimator": self.estimator, "alpha": None if width is None else self.alpha, "normalize": self.normalize,
            "search": self.search, "victim": self.victim, "samples": evidence.n_samples,
            "rule": None if width is None else width.rule, "sigma": None if width is None else width.sigma,
            "floor": evidence.floor, "threshold": removals.threshold, "level": None if seen is None else seen.level,
        }  # fmt: skip
        return {
            "removed": removed_rows(removals, gone),
            "redundancy": [layer | spectrum(evidence.nearest, removals)],
            "spectrum": spectrum_rows(known(evidence.nearest, removals)),
            "groups": [] if seen is None else group_rows(seen.groups, evidence.here, gone),
            "tokens": token_rows(removals, gone, evidence.top),
        }

    def merge(
        self, evidence: Study, output: Member, values: Statistics, keep: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output map's new weight (R, C) and bias (R,), float64, once the units ``keep`` (count,) stay.

        A removed neuron's part goes to the partner that stays, or with ``merging=joint`` to the partners of all; of one
        without a partner, and pairwise of a head, the mean goes into the bias.
        """
        plan = resolve(evidence.removals, (~keep.cpu()).nonzero()[:, 0])
        columns, partner, lines = output.index[plan.removed], plan.partner, output.index.shape[1]
        moments = Moments(values["input_moments"].mean, values["input_gram"].matrix)
        place, alone = output.W.device, (partner < 0).repeat_interleave(lines)
        removed, how = columns.reshape(-1).to(place), (self.min_r2, self.unmerged)
        if self.merging == JOINT:
            partners = output.index[partner[partner >= 0].unique()].reshape(-1).to(place)
            found = merge_jointly(output.W, output.bias, moments, removed, alone.to(place), partners, *how)
            return found.W, found.bias
        if lines == 1:
            partner = torch.where(partner < 0, -1, output.index[partner.clamp(min=0), 0])
        else:
            partner = torch.full((columns.numel(),), -1)
        found = merge(output.W, output.bias, moments, removed, partner.to(place), *how)
        return found.W, found.bias

    def _check(self) -> None:
        """Raise ConfigError for fields that do not go together."""
        if (self.bandwidth == "fixed") != (self.width is not None):
            raise ConfigError("method.width", self.width, "a number with method.bandwidth=fixed, else null")
        if (self.quantile is None) == (self.threshold is None):
            both = (self.quantile, self.threshold)
            raise ConfigError("method.quantile, method.threshold", both, "one of them, null for the other")
        if self.search == "random_pairs" and self.floor_deviations is None:
            hint = "The threshold falls until enough units went, or to this."
            raise ConfigError(
                "method.floor_deviations", None, "a number with method.search=random_pairs", hint
            )
        if self.n_seeds > 1 and (self.search, self.select) != ("random_pairs", "kl"):
            hint = "Other searches find the same every time, and one run has to be chosen."
            allowed = "1, or method.search=random_pairs with method.select=kl"
            raise ConfigError("method.n_seeds", self.n_seeds, allowed, hint)
        if self.estimator == "gaussian" and self.victim == "lower_entropy":
            allowed = "another rule with method.estimator=gaussian, which knows no entropy"
            raise ConfigError("method.victim", self.victim, allowed)

    def _width(self, view: UnitView, samples: Samples) -> Width | None:
        live = samples.columns[:, ~samples.dead]
        if self.estimator == "gaussian" or not live.shape[1]:
            return None
        if self.width is not None:
            return Width(self.width, "number")
        outputs = None
        if self.bandwidth == "alignment":
            outputs = (
                view.value(view.output, "input_samples")[: self.n_samples].double() @ view.output.W.double().T
            )
        rule = "median" if live.ndim == 3 else self.bandwidth
        return choose_width(
            rule, live, self.alpha, view.generator, outputs=outputs, n_neurons=self.bw_neurons,
            null_weight=self.bw_null_weight,
        )  # fmt: skip

    def _estimator(self, width: Width | None) -> Estimator:
        if self.estimator == "gaussian":
            return Gaussian(self.normalize)
        sigma = 1.0 if width is None else width.sigma  # nothing is alive, and nothing will be compared
        return Renyi(
            sigma, self.alpha, self.normalize, null_draws=self.null_draws, precise=self.precision == "float64"
        )

    def _search(
        self, estimator: Estimator, neurons: Neurons, generator: torch.Generator
    ) -> tuple[list[Removals], float | None, Seen | None]:
        """Return all removals there could be, of every search, the floor, and what all pairs say, where all were looked at.

        Searches of random pairs share all they compute but the draws.
        """
        Z, m = neurons.columns, len(neurons.norm)
        count = min(math.ceil(self.most * m), m - 1)
        floor, seen = None, None
        if len(neurons.live) > 1 and self.floor_deviations is not None:
            null = chance(Z, estimator, neurons.live, NULL_PAIRS, generator)
            floor = max(float(null.mean() + self.floor_deviations * null.std()), LEAST_FLOOR)
        if len(neurons.live) < 2 or self.search == "cluster":
            level = (
                self._threshold(estimator.values(Z), neurons, generator) if self._counts(neurons) else None
            )
            least = -1.0 if floor is None else floor
            removals = clustered(
                estimator, neurons, count, generator, n_clusters=self.n_clusters, floor=least, threshold=level
            )
            return [removals] * self.n_seeds, floor, seen
        if self.search == "random_pairs" and self.estimator == "renyi_matrix" and self.alpha != 2:
            values = remembered(estimator.values(Z), m)  # an eigenvalue problem a pair: only those drawn
        else:
            matrix = estimator.matrix(Z)
            seen = look(matrix, self.threshold, self.quantile, ~neurons.dead)
            if self.search == "all_pairs_greedy":
                level = self._threshold(lookup(matrix), neurons, generator) if self._counts(neurons) else None
                least = -1.0 if floor is None else floor
                removals = all_pairs_greedy(matrix, neurons, count, generator, floor=least, threshold=level)
                return [removals], floor, seen
            values = lookup(matrix)
        assert floor is not None
        threshold = self._threshold(values, neurons, generator)
        found = [
            random_pairs(
                values, neurons, count, generator, threshold=threshold, floor=floor, decay=self.threshold_decay,
                max_trials=self.max_trials,
            )
            for _ in range(self.n_seeds)
        ]  # fmt: skip
        return found, floor, seen

    def _counts(self, neurons: Neurons) -> bool:
        """Whether partners above a threshold are counted."""
        return self.victim == "central" and len(neurons.live) > 1

    def _threshold(self, values: Values, neurons: Neurons, generator: torch.Generator) -> float:
        if self.threshold is not None:
            return self.threshold
        assert self.quantile is not None
        return quantile_of(values, neurons.live, self.quantile, generator)


def _by_unit(samples: Samples, lines: int) -> Samples:
    """Return samples of channels (n, units * lines) as those of units of so many channels."""
    if lines == 1:
        return samples
    n = len(samples.columns)
    return Samples(
        samples.columns.view(n, -1, lines), samples.deviation, samples.dead.view(-1, lines).all(1),
        torch.zeros_like(samples.rare.view(-1, lines)[:, 0]),
    )  # fmt: skip


def _norms(output: Member, index: Tensor, deviation: Tensor) -> Tensor:
    """Return how much each unit (count, lines) moves the output: the root of sum of ||W[:, c]||^2 std_c^2, float64."""
    length = output.W.double().square().sum(0)[index.to(output.W.device)]
    return (length * deviation.view(index.shape).to(length.device).square()).sum(1).sqrt().cpu()


def _named(removals: Removals, here: Tensor) -> Removals:
    """Return removals among the units that are alive, ``here`` (m,), by unit number."""
    partner = torch.where(removals.partner < 0, -1, here[removals.partner.clamp(min=0)])
    return Removals(
        here[removals.order], partner, removals.value, removals.r2, removals.sign, removals.reason,
        removals.shortfall, removals.threshold,
    )  # fmt: skip


def _importance(removals: Removals, norm: Tensor) -> Tensor:
    """Return the importance (m,): dead units, then redundant ones in the order they went, then the others by norm."""
    rank = norm.argsort(stable=True).argsort(stable=True)
    importance = 1 + rank.double() / len(norm)
    last = -math.inf
    for x, value in zip(removals.order.tolist(), removals.value.tolist(), strict=True):
        wanted = DEAD if math.isnan(value) else -value
        last = max(wanted, math.nextafter(last, math.inf) if last > -math.inf else wanted)
        importance[x] = last  # strictly rising: the first q are the first q that went
    return importance
