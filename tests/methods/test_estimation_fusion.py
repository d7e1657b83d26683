"""Estimation fusion on views of random decoders: its members, its extremes, removed units, and what it may not depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelab.importance import fusion
from prunelab.methods.estimation_fusion import EstimationFusion
from prunelab.methods.llm_pruner import LLMPruner
from prunelab.models.random import random_decoder
from prunelab.pattern.base import HEADS, NEURONS

USUAL = EstimationFusion(
    "estimation_fusion", 1, None, mode="attention", fixed_weight=0.5, fine_order="mixed", coarse_slice="row",
    members="all", bias=True, norm="mean", temperature=0.5, query_mix=0.5,
    probes=64, probe_fraction=0.05, probes_held_out=0.25, width=8, steps=200, rate=0.01, decay=0.001,
    log_term=False, per_parameter=True,
)  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize(
    ("weight", "fine_order", "order"),
    [(1.0, "mixed", "vector"), (0.0, "element1", "element1"), (0.0, "mixed", "mixed")],
)
def test_a_constant_weight_ranks_as_llm_pruner(
    family: str, weight: float, fine_order: str, order: str, tokens: Tensor, taylor: Any
) -> None:
    fused = replace(USUAL, mode="fixed", fixed_weight=weight, fine_order=fine_order)
    alone = LLMPruner("llm_pruner", 1, None, order, "sum", True)
    for view in taylor.views(random_decoder(family), tokens).values():
        assert fused.importance(view).argsort().tolist() == alone.importance(view).argsort().tolist()


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_estimates_are_those_of_stored_gradients(family: str, tokens: Tensor, taylor: Any) -> None:
    decoder = random_decoder(family, dtype=torch.float64)
    terms = taylor.terms(decoder, tokens)
    for view in taylor.views(decoder, tokens).values():
        for slices in ("row", "unit"):
            C, E = replace(USUAL, coarse_slice=slices).estimates(view)
            for s, member in enumerate(view.members):
                of = terms[member.site]
                signed, mixed = of["signed"], of["mixed"]
                if member.axis == 1:
                    signed, mixed = signed[:, :-1].T, mixed[:, :-1].T
                for unit, lines in enumerate(member.index):
                    rows = signed[lines].sum(1)
                    expected = rows.abs().sum() if slices == "row" else rows.sum().abs()
                    assert float(C[unit, s]) == pytest.approx(float(expected), abs=1e-6 * float(E.max()))
                    assert float(E[unit, s]) == pytest.approx(float(mixed[lines].sum()), rel=1e-5)


def test_eulers_identities_make_two_coarse_members_equal(tokens: Tensor, taylor: Any) -> None:
    """Gated: up and down; ReLU: in and out; attention with one slice per unit: query and key, value and output."""
    whole = replace(USUAL, coarse_slice="unit")
    for family, pairs in (("llama", [(1, 2)]), ("opt", [(0, 1)])):
        views = taylor.views(random_decoder(family, dtype=torch.float64), tokens)
        for (_, kind), view in views.items():
            C, _ = whole.estimates(view)
            for left, right in pairs if kind == NEURONS else [(0, 1), (2, 3)]:
                torch.testing.assert_close(C[:, left], C[:, right], rtol=1e-4, atol=1e-5 * float(C.max()))


def test_members_may_leave_out_up(tokens: Tensor, taylor: Any) -> None:
    views = taylor.views(random_decoder("llama"), tokens)
    unique = replace(USUAL, members="unique")
    for (_, kind), view in views.items():
        both, fewer = USUAL.estimates(view), unique.estimates(view)
        kept = [0, 2] if kind == NEURONS else [0, 1, 2, 3]
        assert all(torch.equal(b[:, kept], f) for b, f in zip(both, fewer, strict=True))
    opt = taylor.views(random_decoder("opt"), tokens)[0, NEURONS]
    assert unique.estimates(opt)[0].shape == (40, 2)


@pytest.mark.parametrize("mode", ["attention", "fixed", "product"])
def test_removed_units_take_no_part(mode: str, tokens: Tensor, taylor: Any) -> None:
    method = replace(USUAL, mode=mode)
    view = taylor.views(random_decoder("llama"), tokens)[0, NEURONS]
    alive = view.alive.clone()
    alive[[2, 30]] = False
    scores = method.importance(replace(view, alive=alive))
    assert scores[[2, 30]].tolist() == [0, 0]
    C, E = (part[alive] for part in method.estimates(view))
    population = fusion.build_population(C, E, "mean")
    low, high = (f(population.coarse, population.fine) for f in (torch.minimum, torch.maximum))
    assert bool(((scores[alive] >= low - 1e-12) & (scores[alive] <= high + 1e-12)).all())
    nobody = method.importance(replace(view, alive=torch.zeros_like(alive)))
    assert not nobody.any()


def test_blocks_and_kinds_are_on_one_scale(tokens: Tensor, taylor: Any) -> None:
    for view in taylor.views(random_decoder("llama"), tokens).values():
        fixed = replace(USUAL, mode="fixed", fixed_weight=0.3)
        assert float(fixed.importance(view).mean()) == pytest.approx(1)
        assert float(replace(fixed, norm="sum").importance(view).sum()) == pytest.approx(1)


def test_up_and_down_may_trade_a_factor(tokens: Tensor, taylor: Any) -> None:
    decoder = random_decoder("llama", dtype=torch.float64)
    before = USUAL.importance(taylor.views(decoder, tokens)[1, NEURONS])
    with torch.no_grad():
        decoder.blocks[1].mlp.up_proj.weight[4] *= 5
        decoder.blocks[1].mlp.down_proj.weight[:, 4] /= 5
    after = USUAL.importance(taylor.views(decoder, tokens)[1, NEURONS])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * float(before.max()))


def test_twice_the_calibration_set_changes_nothing(tokens: Tensor, taylor: Any) -> None:
    once = taylor.views(random_decoder("qwen2"), tokens)
    twice = taylor.views(random_decoder("qwen2"), torch.cat([tokens, tokens]))
    for key in once:
        torch.testing.assert_close(
            USUAL.importance(twice[key]), USUAL.importance(once[key]), rtol=1e-4, atol=1e-9
        )


def test_a_dead_neuron_goes_first(tokens: Tensor, taylor: Any) -> None:
    decoder = random_decoder("llama")
    with torch.no_grad():
        decoder.blocks[0].mlp.down_proj.weight[:, 3] = 0
    views = taylor.views(decoder, tokens)
    for mode in ("attention", "fixed", "product"):
        scores = replace(USUAL, mode=mode).importance(views[0, NEURONS])
        assert (int(scores.argmin()), float(scores[3])) == (3, 0)
    assert bool((USUAL.importance(views[0, HEADS]) > 0).all())
