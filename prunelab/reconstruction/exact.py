"""Layer by layer: the kept weights (and biases) that best reproduce each linear layer's dense output.

The inputs of all layers of a block come from one forward of the pruned stream through the block with its
dense weights, the statistics that masks are chosen on (arXiv:2406.15524). The target is the dense layer on
those inputs (local) or on the inputs of the dense stream (global). Given the Gram matrices the problem is
quadratic: :mod:`prunelab.linalg.masked` solves it exactly for all rows at once, or by gradient steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.linalg.masked import Solution, descend_masked, solve_masked
from prunelab.models.inputs import catch_inputs, groups
from prunelab.reconstruction.base import Layer, Unit
from prunelab.sparsity import mask as masking


@dataclass(frozen=True)
class LeastSquares:
    """``masks``: when they are chosen, see :class:`prunelab.reconstruction.base.Reconstruction`. ``damping``: pull towards the
    dense weights, relative to the Gram matrix' mean diagonal.

    The objective of a row is its mean squared error on the tokens, pull included. ``tolerance``: how far a row may
    lie above the optimum of its objective, relative to it, when the exact solver stops; ``iterations``: its limit, or
    the number of gradient steps; ``learning_rate``: of those steps.
    """

    name: str
    revision: int
    masks: Annotated[str, "before | between | by_pattern"]
    target: Annotated[str, "local | global"]
    solver: Annotated[str, "exact | gradient"]
    damping: Annotated[float, "x >= 0"]
    tolerance: Annotated[float, "x > 0"]
    iterations: Annotated[int, "x >= 0"]
    learning_rate: Annotated[float, "x > 0"]

    window = 1
    stride = 1
    early_stop = False

    @torch.no_grad()
    def repair(self, unit: Unit, say: Callable[[Mapping[str, Any]], None]) -> dict[str, float]:
        """Solve every layer of a block; return how many iterations all took, the largest residual of a row, and the
        largest gap of a layer: how far at most its objective lies above the optimum, relative to it."""
        layers = {layer.site.name: layer for layer in unit.layers}
        solutions: list[Solution] = []
        members = groups(unit.decoder, unit.blocks[0])
        with unit.dense():
            grams = self._grams(unit, [group[0].linear.in_features for group in members])
        for group, (own, cross) in zip(members, grams, strict=True):
            for site in group:
                solutions.append(self._solve(layers[site.name], own, cross))
        return {
            "iterations": sum(solution.iterations for solution in solutions),
            "residual": max(solution.residual for solution in solutions),
            "gap": max(solution.gap for solution in solutions),
        }

    def _grams(self, unit: Unit, widths: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return per group ``X^T X / N`` and ``X_target^T X / N``, (C + 1, C + 1) float64, with a last input
        of ones.

        Summed in float64, one sequence after the other, so that the size of a batch leaves no trace.
        """
        streams = unit.calibration
        device = unit.decoder.device
        apart = self.target == "global"  # else the second matrix is the first

        def empty() -> list[Tensor]:
            return [torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device) for width in widths]

        own, cross = empty(), empty() if apart else []
        members = groups(unit.decoder, unit.blocks[0])
        count = 0
        for rows in streams.batches():
            seen = self._inputs(unit, members, streams.pruned.read(rows))
            for total, x in zip(own, seen, strict=True):
                for one in x.double():
                    total.addmm_(one.T, one)
            if apart:
                wanted = self._inputs(unit, members, streams.dense.read(rows))
                for total, x, y in zip(cross, seen, wanted, strict=True):
                    for one, other in zip(x.double(), y.double(), strict=True):
                        total.addmm_(other.T, one)
            count += seen[0].shape[0] * seen[0].shape[1]
        for total in (*own, *cross):
            total /= count
        return list(zip(own, cross if apart else own, strict=True))

    def _inputs(self, unit: Unit, members: list[Any], hidden: Tensor) -> list[Tensor]:
        """The inputs of every group on one batch, (b, seq_len, C + 1)."""
        caught: list[Tensor] = []

        def take(x: Tensor) -> None:
            x = x.reshape(*hidden.shape[:2], x.shape[-1])  # some families flatten the batch before their MLP
            caught.append(torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2))

        with catch_inputs(members, [take] * len(members)):
            unit.calibration.run(unit.blocks, hidden)
        return caught

    def _solve(self, layer: Layer, own: Tensor, cross: Tensor) -> Solution:
        bias, linear = layer.bias is not None, layer.linear
        size = linear.in_features + bias
        own, cross = own[:size, :size], cross[:size, :size]
        pull = self.damping * own.diagonal()[: linear.in_features].mean() * torch.eye(size).to(own)
        H = own + pull
        dense = _joined(layer.weight, layer.bias)
        keep = layer.mask.keep().to(H.device)
        if bias:
            entries = layer.mask.keep_bias_entries()
            column = torch.ones_like(keep[:, 0]) if entries is None else entries.to(H.device)
            keep = torch.cat([keep, column[:, None]], 1)
        start, wanted = _joined(linear.weight.data, _bias(linear)), dense @ (cross + pull)
        if self.solver == "gradient":
            solution = descend_masked(
                start, wanted, H, keep, learning_rate=self.learning_rate, iterations=self.iterations,
                name=layer.site.name,
            )  # fmt: skip
        elif self.solver == "exact":
            solution = solve_masked(
                start, wanted, H, keep, tolerance=self.tolerance, iterations=self.iterations,
                name=layer.site.name,
            )  # fmt: skip
        else:
            raise ConfigError("reconstruction.solver", self.solver, "exact | gradient")
        if solution.iterations:
            linear.weight.copy_(solution.X[:, : linear.in_features])
            if bias:
                linear.bias.copy_(solution.X[:, -1])
            masking.apply(layer.mask, linear.weight, linear.bias)
        return solution


def _bias(linear: torch.nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.data


def _joined(weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[W  b]`` (R, C + 1) or W (R, C), float64."""
    weight = weight.double()
    return weight if bias is None else torch.cat([weight, bias.double()[:, None]], 1)
