"""Adaptive estimation fusion (HyWIA, arXiv:2403.10799): one importance from a coarse and a fine estimate of a unit.

For unit u and its members s = 1..p (gate, up, down; query, key, value, output), with g and F of stats/taylor.py:

    coarse  C[u,s] = |sum_k w_k g_k|                      one absolute value per slice: terms cancel
    fine    E[u,s] = sum_k |w_k g_k - w_k^2 F_k / 2|      one per weight: they cannot
    c_u = sum_s C[u,s],   f_u = sum_s E[u,s]

Fine sums are larger than coarse ones, so both are normalised inside a population of units (marked ^ below), then

    I_u = a_u c^_u + (1 - a_u) f^_u

The abstract says that the blend is adaptive for every substructure and comes from an attention mechanism; no code and
no formula of it is public. ``attention_weights`` is a reconstruction: queries, keys, normalisers, temperature and
mixture are choices, said where they are made. ``product`` and ``layer_weight`` are ablations of our own, a constant
weight gives the methods that are fused. ``uncertainty`` is the weighting of a sibling, SAAP (arXiv:2412.15127), in the
usual form of multi-task learning. Weights that are fitted to measured losses: importance/probe.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-12  # of cosines: a profile of zeros has cosine 0 with anything


@dataclass(frozen=True, eq=False)
class Population:
    """Units that one attention looks at, those of one layer and kind; everything normalised, float64, >= 0.

    ``coarse``, ``fine``: c^ and f^ (units,). ``coarse_members``, ``fine_members``: C^ and E^ (units, p), every column
    by its own normaliser. ``kind``: neurons or heads. ``depth``: of the layer, 0 the first, 1 the last. ``level``: log
    of the mean of c and f before normalisation, None where that is 0.
    """

    coarse: Tensor
    fine: Tensor
    coarse_members: Tensor
    fine_members: Tensor
    kind: str = ""
    depth: float = 0.0
    level: float | None = None


def build_population(C: Tensor, E: Tensor, norm: str, kind: str = "", depth: float = 0.0) -> Population:
    """Return the population of C and E (units, p), >= 0, normalised in itself; ``norm``: of ``NORMS``."""
    return build_populations([(C, E)], norm, [kind], [depth])[0]


def build_populations(
    estimates: Sequence[tuple[Tensor, Tensor]], norm: str, kinds: Sequence[str], depths: Sequence[float]
) -> list[Population]:
    """Return a population per (C, E), normalised over all of them together.

    A member's column goes with those of the same kind: a query's has nothing in common with a gate's.
    """
    both = [(C.double(), E.double()) for C, E in estimates]
    coarse = _together([C.sum(1) for C, _ in both], norm)
    fine = _together([E.sum(1) for _, E in both], norm)
    members: list[tuple[Tensor, Tensor] | None] = [None] * len(both)
    for kind in dict.fromkeys(kinds):
        own = [index for index, other in enumerate(kinds) if other == kind]
        C_parts, E_parts = (_columns([both[index][which] for index in own], norm) for which in (0, 1))
        for index, C, E in zip(own, C_parts, E_parts, strict=True):
            members[index] = C, E
    built = []
    for index, (C, E) in enumerate(both):
        profile = members[index]
        assert profile is not None
        mean = float(C.sum(1).mean() + E.sum(1).mean()) / 2 if len(C) else 0.0
        level = math.log(mean) if mean > 0 else None
        built.append(Population(coarse[index], fine[index], *profile, kinds[index], depths[index], level))
    return built


def _together(parts: Sequence[Tensor], norm: str) -> list[Tensor]:
    return list(normalise(torch.cat(list(parts)), norm).split([len(part) for part in parts]))


def _columns(parts: Sequence[Tensor], norm: str) -> list[Tensor]:
    columns = [normalise(column, norm) for column in torch.cat(list(parts)).unbind(1)]
    return list(torch.stack(columns, 1).split([len(part) for part in parts]))


def _percentile(x: Tensor) -> Tensor:
    """Share of the others that are smaller: the lowest and its equals have 0, so what is dead stays 0."""
    smaller = torch.searchsorted(x.sort().values, x)
    return smaller.double() / max(len(x) - 1, 1) if len(x) > 1 else torch.ones_like(x)


# z-scores are not among them: what they make negative would be below a dead unit
NORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x / x.mean(),
    "max": lambda x: x / x.amax(),
    "sum": lambda x: x / x.sum(),
    "rank": _percentile,
}


def normalise(x: Tensor, norm: str) -> Tensor:
    """Return ``x`` (n,), >= 0, in units of the population, float64; zeros where it has nothing but zeros."""
    x = x.double().contiguous()
    return NORMS[norm](x) if bool(x.any()) else torch.zeros_like(x)


def attention_weights(population: Population, *, temperature: float, query_mix: float) -> Tensor:
    """Return the weights a (units,) of the coarse estimate, in (0, 1); those of the fine one are 1 - a.

    The two granularities of a unit are two tokens, their keys the profiles of its members, x_c = C^[u,:] and
    x_f = E^[u,:]. The query is the layer's mean profile, mixed with the unit's own:

        q_u = (1 - query_mix) mean_v (x_c[v] + x_f[v]) / 2 + query_mix (x_c[u] + x_f[u]) / 2
        a_u = softmax over c, f of cos(q_u, x) / temperature

    So the granularity counts more whose profile agrees with the layer's. Equal profiles give 1/2.
    """
    x_c, x_f = population.coarse_members, population.fine_members
    own = (x_c + x_f) / 2
    query = (1 - query_mix) * own.mean(0, keepdim=True) + query_mix * own
    logits = torch.stack([_cosine(query, x_c), _cosine(query, x_f)]) / temperature
    return torch.softmax(logits, 0)[0]


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(1) / (left.norm(dim=1) * right.norm(dim=1) + EPS)


def fuse(population: Population, a: Tensor | float) -> Tensor:
    """Return a c^ + (1 - a) f^ (units,); ``a`` is one weight or one per unit: 1 is all coarse, 0 all fine."""
    return a * population.coarse + (1 - a) * population.fine


def product(population: Population) -> Tensor:
    """Return sqrt(c^ f^) (units,)."""
    return (population.coarse * population.fine).sqrt()


def layer_weight(coarse: Tensor, fine: Tensor, *, temperature: float) -> float:
    """Return one weight of the coarse estimate for a whole population: how stable the estimates are.

        a = softmax(-CV_c / temperature, -CV_f / temperature)

    ``coarse``, ``fine``: c and f (resamples, units) from two or more parts of the calibration set. CV is a unit's
    standard deviation over its mean, averaged over the units whose mean is not 0.
    """
    if len(coarse) < 2:
        raise ValueError(f"{len(coarse)} resample has no spread; give estimates from two parts or more")
    instabilities = torch.stack([_instability(coarse), _instability(fine)])
    return float(torch.softmax(-instabilities / temperature, 0)[0])


def _instability(estimates: Tensor) -> Tensor:
    x = estimates.double()
    mean, spread = x.mean(0), x.std(0)
    alive = mean > 0
    return (spread[alive] / mean[alive]).mean() if bool(alive.any()) else mean.new_zeros(())


def uncertainty(population: Population, sigma_coarse: float, sigma_fine: float) -> Tensor:
    """Return c^ / (2 sigma_c^2) + f^ / (2 sigma_f^2) + log(sigma_c sigma_f) (units,).

    The last term is one number for a population: it matters only where populations are compared.
    """
    fused = population.coarse / (2 * sigma_coarse**2) + population.fine / (2 * sigma_fine**2)
    return fused + math.log(sigma_coarse * sigma_fine)


def uncertainty_weight(sigma_coarse: float, sigma_fine: float) -> float:
    """Return what ``uncertainty`` gives the coarse estimate of a weight of 1 in all, to be reported."""
    return sigma_fine**2 / (sigma_coarse**2 + sigma_fine**2)
