"""Blends of coarse and fine estimates that are fitted to measured losses (estimation fusion, arXiv:2403.10799).

A probe removes a few random units of one layer and kind and measures by how much the loss rises, dL. Two fits explain
the probes by the scores of what they removed; both are reconstructions, as neither paper's code is public.

``fit_learned``: attention with small learned maps, shared by all layers of a kind, and a bias b (2,) of each layer and
kind. With x_c, x_f a unit's normalised profiles (p,), and e = (depth of the layer, log mean score of the layer less
the kind's average):

    Q = W_q [x_c; x_f; e],   K_g = W_k x_g + t_g,   a = softmax over g = c, f of Q.K_g / sqrt(width) + b_g
    minimise  mean over probes of (s sum_{u removed} I_u - dL)^2 / var(dL),   s >= 0 a scale per layer and kind

by Adam, from equal weights: keys and biases begin at 0. A quarter of the probes is held out; unless the learned blend
ranks those better than the fixed attention does, and better than chance would (choice: the 95 % point of no
correlation), the fixed one is used. The scales say how much a normalised unit of a layer and kind matters, so layers
compare by s I.

``fit_uncertainty``: the two noises of ``fusion.uncertainty`` for each layer and kind (SAAP, arXiv:2412.15127), from
the same probes. The sum of a probe's scores, without the log term that no probe can tell, is fitted to dL in units of
its standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.errors import ModelError
from prunelab.importance.fusion import Population, attention_weights, fuse

CHANCE = (
    1.645  # one-sided 95 % point of a normal: of n ranks without correlation, rho sqrt(n - 1) is about one
)
SMALLEST = 1e-6  # of a fitted scale, so that it has a logarithm


@dataclass(frozen=True, eq=False)
class Probe:
    """What was removed, ``units`` (k,) int64 of population number ``population``, and what it did: ``change`` of the
    mean token loss, in nats."""

    population: int
    units: Tensor
    change: float


@dataclass(frozen=True)
class Descent:
    """How a fit goes down: Adam's ``steps`` and ``rate``, and ``decay`` of the learned maps (not of scales)."""

    steps: int = 200
    rate: float = 1e-2
    decay: float = 1e-3


@dataclass(frozen=True, eq=False)
class Blend:
    """Weights a (units,) and a scale s for every population; ``learned``: False if the fixed attention is used.

    ``rho_learned``, ``rho_attention``: Spearman's rank correlation with dL on the probes that were held out.
    """

    weights: tuple[Tensor, ...]
    scales: tuple[float, ...]
    learned: bool
    rho_learned: float
    rho_attention: float


def draw_probes(
    populations: Sequence[Population], n: int, fraction: float, generator: torch.Generator
) -> list[tuple[int, Tensor]]:
    """Return ``n`` random removals: the number of a population, and units of it (k,) int64, sorted.

    Each takes ``fraction`` of a population's units (at least one, never all). They come from one of four strata, c^
    and f^ each above or below their median, in turn (choice: sums over units drawn from everywhere would all be
    alike, and would not tell the two apart); where a stratum has too few, from the others as well.
    """
    drawn = []
    possible = [index for index, one in enumerate(populations) if len(one.coarse) > 1]
    if not possible:
        raise ModelError("no layer has two units of a kind, so there is nothing to probe.")
    for turn in range(n):
        index = possible[int(torch.randint(len(possible), (), generator=generator))]
        one = populations[index]
        count = min(max(1, round(fraction * len(one.coarse))), len(one.coarse) - 1)
        high = [x > x.median() for x in (one.coarse.cpu(), one.fine.cpu())]
        inside = (high[0] == bool(turn & 1)) & (high[1] == bool(turn & 2))
        order = torch.randperm(len(inside), generator=generator)
        chosen = torch.cat([order[inside[order]], order[~inside[order]]])[:count]
        drawn.append((index, chosen.sort().values))
    return drawn


def fit_learned(
    populations: Sequence[Population], probes: Sequence[Probe], *, width: int, temperature: float, query_mix: float,
    generator: torch.Generator, held_out: float = 0.25, descent: Descent | None = None,
) -> Blend:  # fmt: skip
    """Return the blend that explains the probes. ``width``: of queries and keys; ``temperature``, ``query_mix``: of
    the fixed attention, see :func:`fusion.attention_weights`. ``generator``: of the split and of the first maps, on
    the CPU. Raises ModelError for a change that is not finite and for fewer than 8 probes, which leave no two to rank.
    """
    descent = descent or Descent()
    y = _targets(probes)
    order = torch.randperm(len(probes), generator=generator)
    n_held = max(2, round(held_out * len(probes)))
    held, used = order[:n_held].tolist(), order[n_held:].tolist()
    fixed = [attention_weights(one, temperature=temperature, query_mix=query_mix) for one in populations]
    removed = _Removed.of(populations, probes)

    def sums(weights: Sequence[Tensor]) -> Tensor:
        pairs = zip(populations, weights, strict=True)
        return removed.sums([fuse(one, a.to(one.coarse.device)) for one, a in pairs])

    fixed_sums = sums(fixed)
    fixed_scales = _scales(populations, probes, fixed_sums, y, used)

    maps = {
        kind: _Maps.draw(kind, populations, width, generator) for kind in {one.kind for one in populations}
    }
    levels = _levels(populations)
    biases = torch.zeros(len(populations), 2, dtype=torch.float64, requires_grad=True)
    raw = torch.log(
        torch.expm1(fixed_scales.clamp_min(SMALLEST))
    ).requires_grad_()  # softplus gives them back

    def weights() -> list[Tensor]:
        return [
            maps[one.kind].weights(one, e, b) for one, e, b in zip(populations, levels, biases, strict=True)
        ]

    where = torch.tensor([probe.population for probe in probes])

    def loss() -> Tensor:
        predicted = F.softplus(raw)[where] * sums(weights())
        return (predicted - y)[used].square().mean()

    learned_maps = [biases, *(part for one in maps.values() for part in (one.W_q, one.W_k, one.t))]
    _descend(loss, learned_maps, [raw], descent)
    with torch.no_grad():
        found = weights()
        scales = _filled(populations, probes, F.softplus(raw), used)
        rho = [
            spearman((by[where] * of_probes)[held], y[held])
            for by, of_probes in ((scales, sums(found)), (fixed_scales, fixed_sums))
        ]
    better = rho[0] > max(rho[1], CHANCE / math.sqrt(n_held - 1))
    chosen, by = (found, scales) if better else (fixed, fixed_scales)
    spread = _spread(_changes(probes))
    return Blend(tuple(chosen), tuple((by * spread).tolist()), better, *rho)


def fit_uncertainty(
    populations: Sequence[Population], probes: Sequence[Probe], descent: Descent | None = None
) -> list[tuple[float, float]]:
    """Return (sigma_c, sigma_f) of every population, > 0; one without probes has the average weights of its kind.

    Raises ModelError for a change that is not finite and for fewer than 8 probes.
    """
    y = _targets(probes)
    where = torch.tensor([probe.population for probe in probes])
    removed = _Removed.of(populations, probes)
    parts = torch.stack(
        [removed.sums([one.coarse for one in populations]), removed.sums([one.fine for one in populations])],
        1,
    )
    start = _scales(populations, probes, parts.mean(1), y, range(len(probes)))
    # both weights begin at half the scale: 1 / (2 sigma^2) = s / 2
    log_sigma = (-0.5 * start.clamp_min(SMALLEST).log())[:, None].repeat(1, 2).requires_grad_()

    def loss() -> Tensor:
        return ((parts * torch.exp(-2 * log_sigma)[where] / 2).sum(1) - y).square().mean()

    _descend(loss, [], [log_sigma], descent or Descent())
    fitted = [torch.exp(-2 * column) / 2 for column in log_sigma.detach().unbind(1)]
    both = [_filled(populations, probes, column, range(len(probes))) for column in fitted]
    return [(float(c), float(f)) for c, f in zip(*((2 * column).rsqrt() for column in both), strict=True)]


@dataclass(frozen=True, eq=False)
class _Maps:
    """The learned maps of one kind: W_q (width, 2 p + 2), W_k (width, p) and t (2, width), float64."""

    W_q: Tensor
    W_k: Tensor
    t: Tensor

    @staticmethod
    def draw(kind: str, populations: Sequence[Population], width: int, generator: torch.Generator) -> _Maps:
        """Begin with random queries, and without a preference."""
        p = next(one.coarse_members.shape[1] for one in populations if one.kind == kind)
        W_q = torch.randn(width, 2 * p + 2, generator=generator).double() * (2 * p + 2) ** -0.5
        W_k, t = (torch.zeros(*shape, dtype=torch.float64) for shape in ((width, p), (2, width)))
        return _Maps(W_q.requires_grad_(), W_k.requires_grad_(), t.requires_grad_())

    def weights(self, one: Population, e: Tensor, b: Tensor) -> Tensor:
        """Return a (units,) of the coarse estimate; ``e`` (2,) says which layer it is, ``b`` (2,) is its bias."""
        x = [one.coarse_members.cpu(), one.fine_members.cpu()]
        queries = torch.cat([*x, e.expand(len(x[0]), 2)], 1) @ self.W_q.T
        keys = torch.stack(x) @ self.W_k.T + self.t[:, None]
        logits = (keys * queries).sum(2) / math.sqrt(queries.shape[1]) + b[:, None]
        return torch.softmax(logits, 0)[0]


def _levels(populations: Sequence[Population]) -> list[Tensor]:
    """Return e (2,) of every population; a population of zeros counts as an average one."""
    average: dict[str, float] = {}
    for kind in {one.kind for one in populations}:
        known = [one.level for one in populations if one.kind == kind and one.level is not None]
        average[kind] = sum(known) / max(len(known), 1)
    return [
        torch.tensor([one.depth, 0.0 if one.level is None else one.level - average[one.kind]]).double()
        for one in populations
    ]


def _changes(probes: Sequence[Probe]) -> Tensor:
    return torch.tensor([probe.change for probe in probes], dtype=torch.float64)


def _spread(changes: Tensor) -> float:
    """Return the standard deviation, or 1 where all changes are the same."""
    return float(changes.std()) or 1.0


def _targets(probes: Sequence[Probe]) -> Tensor:
    """Return dL (probes,) in units of its standard deviation."""
    changes = _changes(probes)
    if len(probes) < 8:
        raise ModelError(f"{len(probes)} probes are too few to fit and to check a blend; measure 8 or more.")
    if not bool(torch.isfinite(changes).all()):
        bad = int((~torch.isfinite(changes)).nonzero()[0])
        raise ModelError(f"probe {bad} changed the loss by {float(changes[bad])}; use model.dtype=float32.")
    return changes / _spread(changes)


@dataclass(frozen=True, eq=False)
class _Removed:
    """Where the units that the probes removed stand among those of all populations, one after the other."""

    index: Tensor
    probe: Tensor  # whose they are
    n_probes: int

    @staticmethod
    def of(populations: Sequence[Population], probes: Sequence[Probe]) -> _Removed:
        """Look them up."""
        starts = [0]
        for one in populations:
            starts.append(starts[-1] + len(one.coarse))
        index = torch.cat([starts[probe.population] + probe.units for probe in probes])
        counts = torch.tensor([len(probe.units) for probe in probes])
        return _Removed(index, torch.arange(len(probes)).repeat_interleave(counts), len(probes))

    def sums(self, scores: Sequence[Tensor]) -> Tensor:
        """Return the sum of scores, (units,) per population, over what each probe removed, (probes,)."""
        all_scores = torch.cat([one.cpu() for one in scores])
        return all_scores.new_zeros(self.n_probes).index_add(0, self.probe, all_scores[self.index])


def _scales(
    populations: Sequence[Population], probes: Sequence[Probe], sums: Tensor, y: Tensor, used: Sequence[int]
) -> Tensor:
    """Return the best scale >= 0 of every population on the probes ``used``, in closed form."""
    where = torch.tensor([probes[index].population for index in used])
    n, chosen = len(populations), list(used)
    products = torch.zeros(n, dtype=torch.float64).index_add_(0, where, (sums * y)[chosen])
    squares = torch.zeros(n, dtype=torch.float64).index_add_(0, where, sums[chosen].square())
    scales = torch.where(squares > 0, products / torch.where(squares > 0, squares, 1.0), 0.0).clamp_min(0)
    return _filled(populations, probes, scales, chosen)


def _filled(
    populations: Sequence[Population], probes: Sequence[Probe], values: Tensor, used: Sequence[int]
) -> Tensor:
    """Give populations without probes the average of their kind's, or of all where the kind has none."""
    seen = {probes[index].population for index in used}
    filled = values.clone()
    for index, one in enumerate(populations):
        if index not in seen:
            same = [other for other in seen if populations[other].kind == one.kind] or list(seen)
            filled[index] = values[same].mean()
    return filled


def _descend(loss: Callable[[], Tensor], maps: list[Tensor], scales: list[Tensor], descent: Descent) -> None:
    """Minimise ``loss`` over ``maps`` and ``scales``, in place."""
    groups = [{"params": maps, "weight_decay": descent.decay}, {"params": scales}]
    optimiser = torch.optim.Adam([one for one in groups if one["params"]], lr=descent.rate)
    with torch.enable_grad():
        for _ in range(descent.steps):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()


def spearman(left: Tensor, right: Tensor) -> float:
    """Return the rank correlation of two vectors, equals sharing their mean rank; 0 if one of them is constant."""
    a, b = (_ranks(x) - (len(x) - 1) / 2 for x in (left, right))
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0


def _ranks(x: Tensor) -> Tensor:
    x = x.double().contiguous()
    ordered = x.sort().values
    below = torch.searchsorted(ordered, x)
    upto = torch.searchsorted(ordered, x, right=True)
    return (below + upto - 1).double() / 2
