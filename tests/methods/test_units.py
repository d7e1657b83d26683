"""Structured baselines on toy units: formulas against loops, dead and constant channels, scale, repetition, seeds."""

from __future__ import annotations

import pytest
import torch

from prunelab.methods.flap import FLAP
from prunelab.methods.magnitude_sp import MagnitudeSP
from prunelab.methods.random import Random
from prunelab.methods.wanda_sp import WandaSP
from prunelab.stats.input_moments import Moments
from prunelab.stats.unit_view import Member, UnitView

WANDA, PLAIN = WandaSP("wanda_sp", 1, None), FLAP("flap", 1, None, "WIFV", 1.0)


def view(Z: torch.Tensor, W: torch.Tensor, kind: str = "neurons", lines: int = 1, seed: int = 0) -> UnitView:
    """Units whose output map is ``W`` (R, C), with what enters it, ``Z`` (n, C); gate and up are drawn."""
    generator = torch.Generator().manual_seed(1)
    C = W.shape[1]
    index = torch.arange(C).view(-1, lines)
    writers = [
        Member(role, role, torch.randn(C, 5, generator=generator, dtype=torch.float64), None, 0, index)
        for role in (("gate", "up") if kind == "neurons" else ("query", "key", "value"))
    ]
    output = Member("down", "down", W, None, 1, index)
    values = {"input_norm": Z.square().mean(0).sqrt(), "input_moments": Moments(Z.mean(0), Z.var(0))}
    alive = torch.ones(len(index), dtype=torch.bool)
    return UnitView(0, kind, (*writers, output), alive, torch.Generator().manual_seed(seed), {"down": values})


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(50, 8, generator=generator, dtype=torch.float64) + 1,
            torch.randn(3, 8, generator=generator, dtype=torch.float64))  # fmt: skip


def test_formulas_equal_loops(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    Z, W = data
    heads = view(Z, W, "heads", 2)
    by_hand = [
        sum(float(W[:, c].abs().mean() * Z[:, c].square().mean().sqrt()) for c in (2 * u, 2 * u + 1))
        for u in range(4)
    ]
    torch.testing.assert_close(WANDA.importance(heads), torch.tensor(by_hand, dtype=torch.float64))
    score = torch.stack([Z[:, c].var() * W[:, c].square().sum() for c in range(8)])
    standard = (score - score.mean()) / score.std()
    torch.testing.assert_close(PLAIN.importance(view(Z, W)), standard)
    torch.testing.assert_close(PLAIN.importance(heads), standard.view(4, 2).mean(1))
    squared = FLAP("flap", 1, None, "WIFV", 2.0)
    power = (score**2 - (score**2).mean()) / (score**2).std()
    torch.testing.assert_close(squared.importance(heads), power.view(4, 2).mean(1))
    torch.testing.assert_close(squared.importance(view(Z, W)), standard)  # neurons are not squared
    columns = MagnitudeSP("magnitude_sp", 1, None, "output", 2)
    torch.testing.assert_close(columns.importance(heads), W.norm(dim=0).view(4, 2).sum(1))
    every = MagnitudeSP("magnitude_sp", 1, None, "all", 1)
    neurons = view(Z, W)
    gate, up, _ = neurons.members
    by_hand = torch.stack([gate.W.abs().sum(1), up.W.abs().sum(1), W.abs().sum(0)]).mean(0)
    torch.testing.assert_close(every.importance(neurons), by_hand)


def test_dead_and_constant_channels_go_first(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    Z, W = data
    Z[:, 3], Z[:, 5] = 0, 4.0
    for metric in ("WIFV", "IFV"):
        importance = FLAP("flap", 1, None, metric, 1.0).importance(view(Z, W))
        assert set(importance.argsort()[:2].tolist()) == {3, 5}
    assert WANDA.importance(view(Z, W))[3] == 0
    assert (
        MagnitudeSP("magnitude_sp", 1, None, "output", 2).importance(view(Z, W))[3] > 0
    )  # it does not see data


def test_a_shift_of_activations_moves_wanda_and_not_flap(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    Z, W = data
    shift = torch.linspace(0, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(PLAIN.importance(view(Z + shift, W)), PLAIN.importance(view(Z, W)))
    assert not torch.allclose(WANDA.importance(view(Z + shift, W)), WANDA.importance(view(Z, W)))


def test_standardised_scores_have_mean_0_and_deviation_1_and_forget_a_layers_scale(
    data: tuple[torch.Tensor, torch.Tensor],
) -> None:
    Z, W = data
    importance = PLAIN.importance(view(Z, W))
    assert float(importance.mean()) == pytest.approx(0, abs=1e-12)
    assert float(importance.std()) == pytest.approx(1)
    torch.testing.assert_close(PLAIN.importance(view(Z, 10 * W)), importance)


def test_wanda_is_the_same_for_repeated_data_and_scales_with_a_column(
    data: tuple[torch.Tensor, torch.Tensor],
) -> None:
    Z, W = data
    once = WANDA.importance(view(Z, W))
    torch.testing.assert_close(WANDA.importance(view(torch.cat([Z, Z]), W)), once)
    scaled = W.clone()
    scaled[:, 2] *= -3
    torch.testing.assert_close(WANDA.importance(view(Z, scaled))[2], 3 * once[2])


def test_random_follows_its_seed_and_nothing_else(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    Z, W = data
    draw = Random("random", 1, None)
    assert torch.equal(draw.importance(view(Z, W)), draw.importance(view(2 * Z, 3 * W)))
    assert not torch.equal(draw.importance(view(Z, W)), draw.importance(view(Z, W, seed=1)))


@pytest.mark.parametrize("method", [WANDA, PLAIN], ids=lambda method: method.name)
def test_permuted_units_have_permuted_scores(
    method: WandaSP | FLAP, data: tuple[torch.Tensor, torch.Tensor]
) -> None:
    Z, W = data
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        method.importance(view(Z[:, order], W[:, order])), method.importance(view(Z, W))[order]
    )
