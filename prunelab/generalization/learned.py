"""Shares learned through soft masks under an exact budget. GPrune-LLM, arXiv:2603.13418, step 3 (our reconstruction).

A module's share is ``s_c = low + (high - low) sigmoid(theta_c + b)``, where ``b`` is solved for at every step so that
``sum_c n_c kappa_c s_c`` is the budget; gradients pass through ``b`` by implicit differentiation. A unit with the
percentile q in its module is multiplied by ``sigmoid((q - s_c) / tau)``. Only ``theta`` learns; weights are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.generalization.budget import Modules, lowest, whole

MEAN, WORST, MEAN_PLUS_STD = "mean", "worst", "mean_plus_std"
_FAR = 40.0  # where float64's sigmoid is 0 or 1 but for 4e-18


@dataclass(frozen=True)
class Schedule:
    """``steps`` of Adam at rate ``lr``; ``tau`` falls geometrically from ``tau_start`` to ``tau_end``. Hard masks are
    judged every ``every`` steps; learning stops when none was better for ``patience`` steps."""

    steps: int
    lr: float
    tau_start: float
    tau_end: float
    every: int
    patience: int

    def tau(self, step: int) -> float:
        """Return the temperature of a step, 0 to ``steps - 1``."""
        return self.tau_start * (self.tau_end / self.tau_start) ** (step / max(self.steps - 1, 1))


@dataclass(frozen=True, eq=False)
class Learned:
    """The best hard masks found: ``shares`` (K,), ``taken`` (K,) units of each module, ``loss`` of them; ``step`` after
    which they were met, 0 for the uniform start; ``losses`` of the soft masks, one per step that was run."""

    shares: Tensor
    taken: Tensor
    loss: float
    step: int
    losses: tuple[float, ...]


def offset(theta: Tensor, modules: Modules, budget: float) -> Tensor:
    """Return the ``b`` (scalar, float64) with which the shares of ``theta`` (K,) meet ``budget``; differentiable.

    By bisection, since the sum grows with b. Its gradient is that of the implicit function,
    ``db/dtheta_c = -n_c kappa_c s'_c / sum_j n_j kappa_j s'_j``. Raises ConfigError for a budget at or beyond the bounds.
    """
    modules.check(budget, open_ends=True)
    fixed = theta.detach()
    low, high = -_FAR - float(fixed.max()), _FAR - float(fixed.min())
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if float(_total(fixed + middle, modules)) < budget:
            low = middle
        else:
            high = middle
    b = torch.tensor((low + high) / 2, dtype=theta.dtype, device=theta.device)
    if not theta.requires_grad:
        return b
    # the value is b; the derivative that of one Newton step at the solution, which is the implicit one
    total, s = _total(theta + b, modules), torch.sigmoid(fixed + b)
    slope = (modules.sizes * (modules.high - modules.low) * s * (1 - s)).sum()
    return b - (total - total.detach()) / slope


def shares(theta: Tensor, modules: Modules, budget: float) -> Tensor:
    """Return the shares (K,) float64 of ``theta`` (K,) that meet ``budget``; differentiable, see :func:`offset`."""
    return _shares(theta + offset(theta, modules, budget), modules)


def soft_masks(percentiles: Tensor, labels: Tensor, s: Tensor, tau: float) -> Tensor:
    """Return the factor of every unit, (m,): ``sigmoid((q - s_c) / tau)`` for its percentile q and its module c."""
    return torch.sigmoid((percentiles - s[labels]) / tau)


def mixed(losses: Tensor, mixture: str = MEAN_PLUS_STD, eta: float = 0.1) -> Tensor:
    """Return one loss of ``losses`` (D,), one per dataset: their mean, the worst, or the mean plus ``eta`` times their
    population standard deviation, which asks for even damage. ConfigError for another ``mixture``."""
    if mixture == WORST:
        return losses.max()
    if mixture == MEAN:
        return losses.mean()
    if mixture == MEAN_PLUS_STD:
        centred = losses - losses.mean()
        variance = centred.square().mean()
        # the root of 0 has no slope: equal losses pull nowhere
        return losses.mean() + eta * torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)
    raise ConfigError("mixture", mixture, f"{MEAN} | {WORST} | {MEAN_PLUS_STD}")


def learn(
    objective: Callable[[Tensor, int], Tensor], judge: Callable[[Tensor], float], percentiles: Tensor,
    labels: Tensor, modules: Modules, budget: float, schedule: Schedule, *, min_units: int = 1,
) -> Learned:  # fmt: skip
    """Return the best hard masks met while ``theta`` learns from the uniform start; that start is one of them.

    ``objective(masks (m,) float64, step)`` returns a loss to differentiate, ``judge(keep (m,) bool)`` that of hard
    masks, on data held out. ``percentiles`` (m,) and ``labels`` (m,) are of the units of all modules. Raises
    ModelError where a loss is not finite.
    """
    theta = torch.zeros_like(modules.costs).requires_grad_()
    adam = torch.optim.Adam([theta], lr=schedule.lr)
    best = _judged(judge, theta, percentiles, labels, modules, budget, min_units, 0)
    losses: list[float] = []
    for step in range(schedule.steps):
        masks = soft_masks(percentiles, labels, shares(theta, modules, budget), schedule.tau(step))
        loss = objective(masks, step)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ModelError(f"the loss of soft masks at step {step + 1} is {losses[-1]}; lower method.lr.")
        adam.zero_grad()
        loss.backward()
        adam.step()
        done = step + 1
        if done % schedule.every == 0 or done == schedule.steps:
            now = _judged(judge, theta, percentiles, labels, modules, budget, min_units, done)
            best = now if now.loss < best.loss else best
            if done - best.step >= schedule.patience:
                break
    return Learned(best.shares, best.taken, best.loss, best.step, tuple(losses))


def _judged(
    judge: Callable[[Tensor], float], theta: Tensor, percentiles: Tensor, labels: Tensor, modules: Modules,
    budget: float, min_units: int, step: int,
) -> Learned:  # fmt: skip
    found = shares(theta.detach(), modules, budget)
    taken = whole(found, modules, budget, min_units)
    return Learned(found, taken, judge(lowest(percentiles, labels, taken)), step, ())


def _shares(x: Tensor, modules: Modules) -> Tensor:
    return modules.low + (modules.high - modules.low) * torch.sigmoid(x)


def _total(x: Tensor, modules: Modules) -> Tensor:
    return (modules.sizes * _shares(x, modules)).sum()
