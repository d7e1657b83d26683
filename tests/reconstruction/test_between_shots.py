"""The correction between shots: one by hand, structure stays, a shot's state is the same whether another follows or not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from by_conf import build
from torch import Tensor
from torch.nn import functional as F

from prunelab.errors import ConfigError
from prunelab.methods.magnitude import Magnitude
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.passes.step import StepReport
from prunelab.pattern.table import build_pattern
from prunelab.reconstruction.lora import LoRA
from prunelab.reconstruction.whole import between_shots
from prunelab.sparsity.mask import violations
from prunelab.structures.state import State, state_digest

PATTERNS = {
    "rows_columns": "surgeon",
    "unstructured": "surgeon_elements",
    "2:4": "surgeon_elements",
    "units": "llm_pruner",
}
TARGETS = [0.1, 0.2, 0.3]


def spec(**changes: Any) -> LoRA:
    return build(
        "between_shots", "lora_surgeon", **{"rank": 2, "share": 0.5, "learning_rate": 1e-2} | changes
    )


def shots(
    decoder: Decoder, tokens: Tensor, pattern: str, targets: list[float], correction: LoRA | None, seed: int = 0,
    **options: Any,
) -> State:  # fmt: skip
    form = build_pattern(pattern, kinds=["neurons"]) if pattern == "units" else build_pattern(pattern)
    method = build("method", PATTERNS[pattern])
    if pattern != "rows_columns":
        options = {"propagation": "dense"} | options
    correct = None if correction is None else between_shots(decoder, correction, seed=seed, batch_size=2)
    return prune(
        decoder, method, tokens, targets, pattern=form, seed=seed, batch_size=2, allocation=getattr(method, "allocation", None),
        correct=correct, **options,
    )  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_model_moves_and_what_is_gone_stays_gone(family: str, pattern: str, tokens: Tensor) -> None:
    targets = [0.2, 0.5] if pattern == "2:4" else TARGETS
    reports: list[StepReport] = []
    plain = shots(random_decoder(family), tokens, pattern, targets, None).clone()
    decoder = random_decoder(family)
    masks: list[dict[str, Tensor]] = []

    def on_step(report: StepReport, state: State) -> None:
        reports.append(report)
        masks.append({name: site.mask.keep().clone() for name, site in state.sites()})
        for site in decoder.sites():
            mask = state.site(site.name).mask
            assert violations(mask, site.linear.weight, site.linear.bias) == 0

    found = shots(decoder, tokens, pattern, targets, spec(), on_step=on_step)
    assert state_digest(found) != state_digest(plain)
    for before, after in pairwise(masks):
        assert not any((after[name] & ~before[name]).any() for name in after)
    told = [report.tables.get("between_shots", []) for report in reports]
    assert told[0] == []
    for number, rows in enumerate(told[1:], 2):
        ((row,),) = [rows]
        assert row["shot"] == number
        assert row["updates"] == len(tokens) // 2
        assert row["adapters"] > 0


@pytest.mark.parametrize("pattern", ["rows_columns", "unstructured"])
def test_a_correction_by_hand(pattern: str, tokens: Tensor) -> None:
    """One update of Adam from B = 0 moves B by the signs of its gradient, and A not at all."""
    form = build_pattern(pattern)
    method = Magnitude("magnitude", 1, 0.1)
    decoder = random_decoder("opt", dtype=torch.float64)
    states, seen = [], []
    rate = 1e-3

    def correct(masks: Any, text: Tensor, shot: int, say: Any) -> Any:
        states.append({s.name: s.linear.weight.clone() for s in decoder.sites()})
        values = {
            f"{s.name}.weight": s.linear.weight.detach().clone().requires_grad_() for s in decoder.sites()
        }
        with torch.enable_grad():
            out = torch.func.functional_call(
                decoder.model, values, kwargs={"input_ids": text[:1], "use_cache": False}
            ).logits
            loss = F.cross_entropy(out[:, :-1].flatten(0, 1), text[:1, 1:].flatten())
            gradients = dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))
        factors: dict[str, Tensor] = {}
        own = spec(share=1.0, learning_rate=rate, rank=3)
        made = LoRA.adapters

        def adapters(self: LoRA, whole: Any) -> Any:
            found = made(self, whole)
            factors.update({one.site.name: one.A.detach().clone() for one in found})
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LoRA, "adapters", adapters)
            numbers = between_shots(decoder, own, seed=0, batch_size=1)(masks, text[:1], shot, say)
        assert numbers["updates"] == 1
        for site in decoder.sites():
            keep, A = masks[site.name].keep().double(), factors[site.name]
            columns = masks[site.name].lines()[1]
            g = (gradients[f"{site.name}.weight"] * keep) @ A.T
            B = -rate * g / (g.abs() + 1e-8)
            wanted = states[-1][site.name] + keep * (B @ A)
            torch.testing.assert_close(site.linear.weight, wanted, rtol=1e-9, atol=1e-10)
            seen.append(A[:, columns.bool()])
        return numbers

    options = {"propagation": "dense"} if pattern == "unstructured" else {}
    prune(
        decoder, method, tokens, [0.1, 0.2], pattern=form, seed=0, batch_size=2, correct=correct, **options
    )  # fmt: skip
    drawn = torch.cat([one.flatten() for one in seen])
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)  # A from N(0, 1)


@pytest.mark.parametrize("pattern", ["rows_columns", "unstructured"])
def test_fewer_shots_are_a_prefix_of_more(pattern: str, tokens: Tensor) -> None:
    short = shots(random_decoder("llama"), tokens, pattern, TARGETS[:2], spec()).clone()
    whole = shots(random_decoder("llama"), tokens, pattern, TARGETS, spec())
    rest = shots(random_decoder("llama"), tokens, pattern, TARGETS, spec(), start=short, start_step=2)
    assert state_digest(rest) == state_digest(whole)
    other = shots(random_decoder("llama"), tokens, pattern, TARGETS, spec(), 1)
    assert state_digest(other) != state_digest(whole)


def test_one_shot_is_not_corrected(tokens: Tensor) -> None:
    one = [
        shots(random_decoder("llama"), tokens, "unstructured", [0.2], correction).clone()
        for correction in (None, spec())
    ]
    assert state_digest(one[0]) == state_digest(one[1])


def test_every_correction_draws_its_own_sequences(tokens: Tensor) -> None:
    """The published share of few sequences is one of them, another one each time."""
    many, losses = tokens.repeat(4, 1), dict[int, list[float]]()
    many = (many + torch.arange(len(many))[:, None]) % 60 + 3

    def log(row: Any) -> None:
        losses.setdefault(row["shot"], []).append(row["loss"])

    decoder = random_decoder("llama")
    correction = spec(share=0.025, learning_rate=1e-12)
    correct = between_shots(decoder, correction, seed=0, batch_size=2, log=log)
    masks = {name: site.mask for name, site in shots(decoder, many, "unstructured", [0.1], None).sites()}
    for shot in range(2, 8):
        correct(masks, many, shot, lambda row: None)
    assert [len(found) for found in losses.values()] == [1] * 6
    assert len({round(found[0], 6) for found in losses.values()}) > 2


def test_tokens_are_needed() -> None:
    decoder = random_decoder("llama")
    correct = between_shots(decoder, spec(), seed=0, batch_size=2)
    method = Magnitude("magnitude", 1, 0.1)
    with pytest.raises(ConfigError, match="correct the model on between shots"):
        prune(
            decoder,
            method,
            None,
            TARGETS,
            pattern=build_pattern("rows_columns"),
            seed=0,
            batch_size=2,
            correct=correct,
        )
