"""Behaviour on a trained toy: a ReLU MLP 20-48-48-6, its first two layers pruned by rows and columns."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.distributed.group import ALONE
from prunelab.methods.kobd import KOBD
from prunelab.methods.lobd import LOBD
from prunelab.methods.magnitude import Magnitude
from prunelab.methods.surgeon import Surgeon
from prunelab.models.block import LinearSite
from prunelab.passes.lines import Lines
from prunelab.passes.shots import Walk
from prunelab.passes.source import Held
from prunelab.pattern.weights import RowsColumns
from prunelab.sparsity import mask as masking
from prunelab.stats.gram import GramSum

METHODS = {
    "surgeon": Surgeon("surgeon", 1, None, 0.01, 0.01, "full", 2000, 0.1, 200),
    "kobd": KOBD("kobd", 1, None),
    "lobd": LOBD("lobd", 1, None),
    "magnitude": Magnitude("magnitude", 1, None),
}
WIDTHS = (20, 48, 48, 6)


def network(generator: torch.Generator) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(outputs, inputs, generator=generator) * (2 / inputs) ** 0.5)
            linear.bias.zero_()
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


@cache
def trained(seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor]:
    """Weights and (train x, train y, test x, test y): 24 noisy clusters, four to a class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(24, WIDTHS[0], generator=generator)
    cluster = torch.randint(24, (8000,), generator=generator)
    x = centres[cluster] + 1.4 * torch.randn(8000, WIDTHS[0], generator=generator)
    y = cluster % WIDTHS[-1]
    model = network(generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        for batch in torch.randperm(4000, generator=generator).split(100):
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
    return model.state_dict(), x[:4000], y[:4000], x[4000:], y[4000:]


class Layers:
    """The first two linear layers, which pruning takes for a model of one block."""

    def __init__(self, model: nn.Sequential) -> None:
        self._model, self.blocks = model, [None]

    def sites(self, block: int | None = None) -> tuple[LinearSite, ...]:
        return tuple(LinearSite(name, name, 0, int(name), self._model[int(name)]) for name in ("0", "2"))


def factors(model: nn.Sequential, x: Tensor, y: Tensor, needs: tuple[str, ...]) -> Held:
    """The adapter: per-sample factors of the first two linear layers."""
    hidden = model[0](x)
    hidden.requires_grad_()
    active = model[1](hidden)
    second = model[2](active)
    loss = F.cross_entropy(model[4](model[3](second)), y, reduction="sum")
    slopes = torch.autograd.grad(loss, [hidden, second])
    found = {}
    for name, a, g in (("0", x, slopes[0]), ("2", active, slopes[1])):
        A, G = GramSum(a.shape[1], ones=True), GramSum(g.shape[1])
        A.add(a[None])
        G.add(g[None])
        both = {"input_gram": A.finish(), "output_gram": G.finish()}
        found[name] = {need: both[need] for need in needs}
    return Held(found)


def pruned_loss(seed: int, method: str, ratio: float, shots: int) -> float:
    weights, x, y, test_x, test_y = trained(seed)
    model = network(torch.Generator())
    model.load_state_dict(weights)
    model.requires_grad_(False)
    masks = {name: masking.full(model[int(name)].weight, model[int(name)].bias) for name in ("0", "2")}
    walk = Walk(Layers(model), METHODS[method], Lines(RowsColumns()), 0, 1, None, ALONE, None, None)
    for shot in range(1, shots + 1):
        masks, _ = walk.shoot(
            factors(model, x, y, METHODS[method].needs), masks, ratio * shot / shots, shot, "global"
        )
    removed, total = (sum(getattr(mask, what) for mask in masks.values()) for what in ("removed", "total"))
    assert 0 <= ratio - removed / total < 49 / total
    return float(F.cross_entropy(model(test_x), test_y))


def dense_loss(seed: int) -> float:
    return pruned_loss(seed, "magnitude", 0.0, 1)


SEEDS = pytest.mark.parametrize("seed", [0, 1])


@SEEDS
@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.4, 0.5])
def test_surgeon_beats_kobd_beats_the_rest(seed: int, ratio: float) -> None:
    surgeon, kobd = (pruned_loss(seed, name, ratio, 10) for name in ("surgeon", "kobd"))
    assert surgeon < kobd < min(pruned_loss(seed, "magnitude", ratio, 1), pruned_loss(seed, "lobd", ratio, 1))


@SEEDS
def test_surgeon_at_40_percent_is_near_dense(seed: int) -> None:
    assert pruned_loss(seed, "surgeon", 0.4, 10) < 1.15 * pruned_loss(seed, "magnitude", 0.0, 1)


@SEEDS
@pytest.mark.parametrize("ratio", [0.5, 0.6])
def test_ten_shots_are_no_worse_than_one(seed: int, ratio: float) -> None:
    assert pruned_loss(seed, "surgeon", ratio, 10) <= pruned_loss(seed, "surgeon", ratio, 1)
