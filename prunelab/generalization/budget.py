"""Shares of modules under one budget: the same for all, by sensitivity, and from shares to whole units.

arXiv:2603.13418, step 3, learns the shares (:mod:`prunelab.generalization.learned`); here are what that needs, and the
two plain rules it is compared with. A budget is parameters to remove, ``sum_c n_c kappa_c s_c = B``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Modules:
    """All modules of all layers: ``counts`` (K,) int64 units, ``costs`` (K,) float64 parameters of one unit, ``layers``
    (K,) int64 which layer and kind a module belongs to; ``low`` and ``high`` bound the share that a module loses."""

    counts: Tensor
    costs: Tensor
    layers: Tensor
    low: float = 0.0
    high: float = 0.95

    @property
    def sizes(self) -> Tensor:
        """Parameters of each module, (K,) float64."""
        return self.counts * self.costs

    def check(self, budget: float, *, open_ends: bool = False) -> None:
        """Raise ConfigError for a ``budget`` that no shares within the bounds meet; ``open_ends``: nor those at a bound."""
        total = float(self.sizes.sum())
        ends = (self.low * total, self.high * total)
        slack = (-1e-9 if open_ends else 1e-9) * total
        if not ends[0] - slack <= budget <= ends[1] + slack:
            allowed = f"{ends[0]:.6g} to {ends[1]:.6g} of the {total:.6g} parameters that modules hold"
            raise ConfigError("budget", budget, allowed, "Change sparsity.ratio or method.s_max.")


def uniform(modules: Modules, budget: float) -> Tensor:
    """Return the same share for every module, (K,) float64."""
    modules.check(budget)
    return torch.full_like(modules.costs, budget / float(modules.sizes.sum()))


def proportional(modules: Modules, budget: float, sensitivity: Tensor, slope: float) -> Tensor:
    """Return shares (K,) float64 ``s_c = b + slope V_c`` of the modules' mean ``sensitivity`` V (K,), b by the ``budget``.

    Shares beyond the bounds are cut there. ``slope`` below 0: sensitive modules lose less.
    """
    modules.check(budget)
    wanted = slope * sensitivity.double()
    low, high = modules.low - float(wanted.max()), modules.high - float(wanted.min())
    for _ in range(200):
        middle = (low + high) / 2
        shares = (wanted + middle).clamp(modules.low, modules.high)
        if float((shares * modules.sizes).sum()) < budget:
            low = middle
        else:
            high = middle
    return (wanted + high).clamp(modules.low, modules.high)


def whole(shares: Tensor, modules: Modules, budget: float, min_units: int = 1) -> Tensor:
    """Return how many units each module loses, (K,) int64: ``shares`` (K,) rounded so that their cost is ``budget``.

    Shares are rounded; then, as long as one unit more or less brings the sum nearer, the module that its share lies
    farthest from, in parameters, loses one more or one less: the largest remainder, weighted by cost. Every layer and
    kind keeps ``min_units``. The sum is within one unit's cost of the budget; ConfigError if what has to stay does not
    allow that.
    """
    wanted = (shares * modules.counts).tolist()
    costs, counts, layers = modules.costs.tolist(), modules.counts.tolist(), modules.layers.tolist()
    taken = [min(math.floor(want + 0.5), n) for want, n in zip(wanted, counts, strict=True)]
    spare = dict.fromkeys(layers, -min_units)  # units of a layer that may still go
    for layer, n, k in zip(layers, counts, taken, strict=True):
        spare[layer] += n - k
    for layer in spare:
        while spare[layer] < 0 and any(taken[c] for c, at in enumerate(layers) if at == layer):
            mine = [c for c, at in enumerate(layers) if at == layer and taken[c]]
            taken[max(mine, key=lambda c: (taken[c] - wanted[c], -c))] -= 1
            spare[layer] += 1
    missing = budget - sum(k * cost for k, cost in zip(taken, costs, strict=True))
    while True:
        sign = 1 if missing > 0 else -1
        nearer = [
            c
            for c, cost in enumerate(costs)
            if cost < 2 * abs(missing)
            and (taken[c] > 0 if sign < 0 else taken[c] < counts[c] and spare[layers[c]] > 0)
        ]
        if not nearer:
            break
        one = max(nearer, key=lambda c: (sign * (wanted[c] - taken[c]) * costs[c], -c))
        taken[one] += sign
        spare[layers[one]] -= sign
        missing -= sign * costs[one]
    if abs(missing) > max(costs) * (1 + 1e-9):
        allowed = f"at most {budget - missing:.6g} parameters with min_units={min_units}"
        raise ConfigError("budget", budget, allowed, "Lower sparsity.ratio or method.min_units.")
    return torch.tensor(taken, dtype=torch.int64)


def lowest(scores: Tensor, labels: Tensor, taken: Tensor) -> Tensor:
    """Return keep (m,) bool: without the ``taken`` (K,) lowest of each module; of equal scores the lower index goes."""
    keep = torch.ones(labels.shape, dtype=torch.bool, device=labels.device)
    for j, k in enumerate(taken.tolist()):
        places = (labels == j).nonzero()[:, 0]
        keep[places[torch.argsort(scores[places], stable=True)[:k]]] = False
    return keep


def dead_first(
    dead: Tensor, costs: Tensor, layers: Tensor, budget: float, min_units: int = 1
) -> tuple[Tensor, float]:
    """Return which units (m,) bool of ``dead`` (m,) go before all others, and the budget that is left.

    ``costs`` (m,) parameters, ``layers`` (m,) int64 the layer and kind of each unit, which keeps ``min_units``. They go
    in order as long as each brings the sum nearer to ``budget``; dead ones that the budget does not reach stay.
    """
    gone, left = torch.zeros_like(dead), budget
    spare = {at: int((layers == at).sum()) - min_units for at in set(layers.tolist())}
    for i in dead.nonzero()[:, 0].tolist():
        cost, at = float(costs[i]), int(layers[i])
        if spare[at] > 0 and cost < 2 * left:
            gone[i], left = True, left - cost
            spare[at] -= 1
    return gone, left
