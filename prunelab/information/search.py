"""Which neurons go because another says the same. arXiv:2406.00030; what is a reconstruction says so.

All three searches give a :class:`Removals`: the neurons in the order in which they go, each with the partner that made
it redundant and was there when it went. Dead neurons go first, by index, without a partner. A search ends when
``count`` neurons went, or when no pair is left whose value is above the floor; then the shortfall is said, and nothing
is removed at random.

- :func:`random_pairs`, the paper's: random pairs of what is left; above a threshold one of the two goes. Of threshold,
  its decay and its floor the paper's values are not public.
- :func:`all_pairs_greedy`, reconstructed and deterministic: always the pair with the largest value.
- :func:`prunelab.information.cluster.clustered`: the same inside groups of neurons that were clustered first.

Who goes (``victim``): ``random``; ``lower_norm``, the one with the smaller ``||W_out[:, i]|| std(z_i)``;
``lower_entropy``; ``central``, the one with more partners above a threshold. Of equals the one with the higher index
goes. A pair with a rare neuron, whose value is not reliable, is decided by the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ConfigError, nearest
from prunelab.information.gaussian import correlations
from prunelab.information.pairs import Values, draw_pairs

VICTIMS = ("random", "lower_norm", "lower_entropy", "central")
DRAWS = 2000  # pairs behind a threshold given as a quantile
BATCH = 64  # random pairs whose values are computed at a time


@dataclass(frozen=True, eq=False)
class Neurons:
    """What decides between two neurons, each (m,): ``norm`` and ``entropy`` (lower goes), ``dead`` and ``rare`` bool.

    ``columns``: samples, (n, m), or (n, m, d) of several channels, for the evidence. ``victim``: see the module.
    """

    columns: Tensor
    dead: Tensor
    rare: Tensor
    norm: Tensor
    entropy: Tensor
    victim: str

    def __post_init__(self) -> None:
        if self.victim not in VICTIMS:
            raise ConfigError(
                "method.victim", self.victim, f"one of {', '.join(VICTIMS)}", nearest(self.victim, VICTIMS)
            )

    @property
    def live(self) -> Tensor:
        """Numbers of the neurons that are not dead."""
        return (~self.dead).nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class Removals:
    """Neurons in the order in which they go, and why; all (r,).

    ``order`` and ``partner`` int64, partner -1 for a dead neuron; ``value`` float64, the pair's normalised information
    (nan for a dead neuron); ``r2`` float64 and ``sign`` (of beta: -1, 0 or 1) of the linear fit on the samples: nan
    and 0 of variables of several channels, which have none. ``reason``: ``dead`` or by which rule it was this one of
    the two. ``shortfall``: how many more were asked for. ``threshold``: at the end; None where there was none.
    """

    order: Tensor
    partner: Tensor
    value: Tensor
    r2: Tensor
    sign: Tensor
    reason: tuple[str, ...]
    shortfall: int
    threshold: float | None


@dataclass(frozen=True, eq=False)
class Blocks:
    """Pairs that a greedy search may look at: inside each block of ``members[b]`` (m_b,) the values ``matrices[b]``
    (m_b, m_b), symmetric. No neuron is in two blocks."""

    members: Sequence[Tensor]
    matrices: Sequence[Tensor]


def all_pairs_greedy(
    matrix: Tensor,
    neurons: Neurons,
    count: int,
    generator: torch.Generator,
    *,
    floor: float = -1.0,
    threshold: float | None = None,
) -> Removals:
    """Remove ``count`` neurons, always the victim of the pair with the largest value in ``matrix`` (m, m), symmetric.

    ``floor``: pairs at or below it are left alone. ``threshold``: from which value on a partner counts for the victim
    rule ``central``, which needs it. ``generator`` decides for the victim rule ``random``. ``O(m^2)``.
    """
    everyone = torch.arange(len(matrix), device=matrix.device)
    return greedy(Blocks([everyone], [matrix]), neurons, count, generator, floor=floor, threshold=threshold)


def greedy(
    blocks: Blocks,
    neurons: Neurons,
    count: int,
    generator: torch.Generator,
    *,
    floor: float,
    threshold: float | None,
) -> Removals:
    """:func:`all_pairs_greedy` over the pairs inside ``blocks``."""
    if neurons.victim == "central" and threshold is None:
        raise ConfigError(
            "method.threshold", None, "a number, or method.quantile, with method.victim=central"
        )
    found = _Found(neurons, count)
    parts = [
        _Part(rows, M, found.alive, threshold)
        for rows, M in zip(blocks.members, blocks.matrices, strict=True)
    ]
    best = torch.tensor([part.best() for part in parts])  # the largest value of each block
    while found.missing and parts and float(best.max()) > floor:
        index = int(best.argmax())
        part = parts[index]
        first, second, value = part.pair()
        x, p = found.decide(first, second, part.partners, generator)
        found.remove(x, p, value)
        part.remove(x)
        best[index] = part.best()
    return found.result(threshold)


def random_pairs(
    values: Values,
    neurons: Neurons,
    count: int,
    generator: torch.Generator,
    *,
    threshold: float,
    floor: float,
    decay: float = 0.95,
    max_trials: int | None = None,
) -> Removals:
    """Remove ``count`` neurons: of a random pair of what is left, above the threshold, the victim.

    After ``max_trials`` draws (None = ``50 m``) without enough of them the threshold is multiplied by ``decay`` and
    the draws begin again, down to the ``floor``, at which the last draws are made. ``values``: of pairs; see
    :class:`prunelab.information.renyi.Renyi`. With the victim rule ``central`` the values of all pairs are computed.
    The same generator gives the same result.
    """
    if not (0 < decay < 1 and floor > 0):
        raise ConfigError("method.threshold_decay, floor", (decay, floor), "0 < decay < 1 and a floor > 0")
    found = _Found(neurons, count)
    trials = 50 * len(neurons.dead) if max_trials is None else max_trials
    level = max(threshold, floor)
    while True:
        partners = _partners(values, neurons, level) if neurons.victim == "central" else None
        _draw(values, found, level, trials, partners, generator)
        if not found.missing or level <= floor or found.n_alive < 2:
            return found.result(level)
        level = max(level * decay, floor)


def quantile_of(values: Values, eligible: Tensor, share: float, generator: torch.Generator) -> float:
    """Return the value that the given share of 2,000 random pairs of ``eligible`` (m,) does not exceed: a threshold
    that means the same in every layer."""
    return float(values(draw_pairs(eligible, DRAWS, generator)).double().quantile(share))


def _draw(
    values: Values,
    found: _Found,
    level: float,
    trials: int,
    partners: Tensor | None,
    generator: torch.Generator,
) -> None:
    """Make ``trials`` draws from what is left, or until enough are removed."""
    while trials and found.missing and found.n_alive > 1:
        # a pair of all neurons, skipped if one of them is gone by its turn, is a pair of what is left then
        pairs = draw_pairs(found.alive.nonzero()[:, 0], BATCH, generator)
        for (first, second), value in zip(pairs.tolist(), values(pairs).tolist(), strict=True):
            if not trials or not found.missing:
                return
            if not (found.alive[first] and found.alive[second]):
                continue
            trials -= 1
            if value > level:
                x, p = found.decide(first, second, partners, generator)
                found.remove(x, p, value)


def _partners(values: Values, neurons: Neurons, level: float) -> Tensor:
    """Return how many partners above ``level`` every neuron has, (m,)."""
    counts = torch.zeros(len(neurons.dead), dtype=torch.int64)
    live = neurons.live
    for number in live.tolist():
        others = live[live != number]
        pairs = torch.stack([torch.full_like(others, number), others], 1)
        counts[number] = (values(pairs) > level).sum()
    return counts


class _Found:
    """What was removed so far, and what is left: dead neurons are gone from the start."""

    def __init__(self, neurons: Neurons, count: int) -> None:
        m = len(neurons.dead)
        if not 0 <= count < m:
            raise ConfigError("sparsity.ratio", f"{count} of {m} neurons", "at least one neuron stays")
        self.neurons = neurons
        dead = neurons.dead.nonzero()[:, 0].tolist()[:count]
        self.rows: list[tuple[int, int, float, str]] = [(x, -1, float("nan"), "dead") for x in dead]
        self.alive = ~neurons.dead.cpu()
        self.missing = count - len(dead)
        self.n_alive = int(self.alive.sum())
        self.norm, self.entropy = neurons.norm.tolist(), neurons.entropy.tolist()
        self.rare = neurons.rare.tolist()

    def decide(
        self, first: int, second: int, partners: Tensor | None, generator: torch.Generator
    ) -> tuple[int, int]:
        """Return who of two goes, and who stays."""
        rule = self.rule(first, second)
        if rule == "random":
            goes = bool(torch.randint(2, (), generator=generator))
            return (first, second) if goes else (second, first)
        if rule == "central":
            assert partners is not None
            few, many = sorted((first, second), key=lambda i: (int(partners[i]), -self.norm[i], i))
            return many, few
        measure = self.norm if rule == "lower_norm" else self.entropy
        x, p = sorted((first, second), key=lambda i: (measure[i], -i))
        return x, p

    def rule(self, first: int, second: int) -> str:
        """By which rule it is decided between two."""
        return "lower_norm" if self.rare[first] or self.rare[second] else self.neurons.victim

    def remove(self, x: int, partner: int, value: float) -> None:
        """Take ``x`` out, because of ``partner``."""
        self.rows.append((x, partner, value, self.rule(x, partner)))
        self.alive[x] = False
        self.missing -= 1
        self.n_alive -= 1

    def result(self, threshold: float | None) -> Removals:
        """Return all that was removed, with the evidence."""
        order = torch.tensor([row[0] for row in self.rows], dtype=torch.int64)
        partner = torch.tensor([row[1] for row in self.rows], dtype=torch.int64)
        both = torch.stack([order, partner.clamp(min=0)], 1)
        columns = self.neurons.columns.cpu()
        if columns.ndim == 2:
            rho = correlations(columns, both).masked_fill(partner < 0, 0.0)
        else:
            rho = torch.full((len(order),), float("nan"), dtype=torch.float64)
        value = torch.tensor([row[2] for row in self.rows], dtype=torch.float64)
        reasons = tuple(row[3] for row in self.rows)
        return Removals(
            order,
            partner,
            value,
            rho.square(),
            rho.nan_to_num().sign().long(),
            reasons,
            self.missing,
            threshold,
        )


class _Part:
    """A block's values, with the best partner of every neuron that is left in it kept up to date."""

    def __init__(self, members: Tensor, matrix: Tensor, alive: Tensor, threshold: float | None) -> None:
        self.members, self.matrix = members.cpu(), matrix.cpu()
        self.left = alive[self.members].clone()
        self.place = {number: row for row, number in enumerate(self.members.tolist())}
        m = len(self.members)
        self.largest = torch.full((m,), -torch.inf, dtype=self.matrix.dtype)
        self.nearest = torch.zeros(m, dtype=torch.int64)
        self.partners: Tensor | None = None
        if threshold is not None:  # by neuron, for the rule that counts them
            self.partners = torch.zeros(len(alive), dtype=torch.int64)
            self.above = (self.matrix > threshold) & self.left
            self.above.fill_diagonal_(False)
            self.partners[self.members] = self.above.sum(1)
        for rows in self.left.nonzero()[:, 0].split(256):
            self._renew(rows)

    def best(self) -> float:
        """The largest value of a pair that is left; -inf without one."""
        return float(self.largest.max()) if len(self.largest) else -torch.inf

    def pair(self) -> tuple[int, int, float]:
        """The pair with that value, and the value."""
        row = int(self.largest.argmax())
        return (
            int(self.members[row]), int(self.members[self.nearest[row]]), float(self.largest[row])
        )  # fmt: skip

    def remove(self, number: int) -> None:
        """Take a neuron out of all pairs."""
        row = self.place[number]
        self.left[row] = False
        self.largest[row] = -torch.inf
        if self.partners is not None:
            self.partners[self.members] -= self.above[:, row].long()
        self._renew((self.left & (self.nearest == row)).nonzero()[:, 0])

    def _renew(self, rows: Tensor) -> None:
        """Find the best partners of ``rows`` anew."""
        if len(rows):
            values = self.matrix[rows].masked_fill_(~self.left, -torch.inf)
            values[torch.arange(len(rows)), rows] = -torch.inf
            self.largest[rows], self.nearest[rows] = values.max(1)
