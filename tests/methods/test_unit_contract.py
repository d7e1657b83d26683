"""Every unit method on every family: the promises that no method may break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from by_conf import build, option_names
from torch import Tensor

from prunelab.evaluation.integrity import check
from prunelab.evaluation.ratios import ratios
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.passes.step import StepReport
from prunelab.pattern.base import GLOBAL, KINDS, UNIFORM, WHOLE, settle
from prunelab.pattern.units import Units
from prunelab.structures.state import State, open_state, save_state, state_digest
from prunelab.structures.surgery import compact, compact_parameters
from prunelab.structures.units import trace_units

METHODS = [
    method
    for name in option_names("method")
    for method in [build("method", name)]
    if "units" in method.supports and type(method).__module__.endswith(f".{name}")  # once per class
]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
# methods of wholes have no equal shares and no walk block by block: tests/methods/test_shortgpt.py, test_sublayers.py
OF_PARTS = [method for method in METHODS if set(getattr(method, "kinds", KINDS)) <= set(KINDS)]
each_of_parts = pytest.mark.parametrize("method", OF_PARTS, ids=lambda method: method.name)


@pytest.fixture
def tokens(tokens: Tensor) -> Tensor:
    """Three sequences are enough here: a whole batch and a part of one."""
    return tokens[:3]


def own(method: Any, key: str, default: str) -> str:
    return settle(None, {key: getattr(method, key)} if hasattr(method, key) else {}, key, default)


def kinds_of(method: Any) -> tuple[str, ...]:
    return getattr(method, "kinds", KINDS)


def run(
    decoder: Decoder, method: Any, tokens: Tensor, schedule: list[float], allocation: str | None = None, **options: Any
) -> State:  # fmt: skip
    fields = {"compensation": own(method, "compensation", "none"), "kinds": kinds_of(method)}
    pattern = Units(**{**fields, **options.pop("units", {})})
    allocation = allocation or own(method, "allocation", UNIFORM)
    stream = "dense" if len(schedule) > 1 or allocation != UNIFORM else own(method, "propagation", "dense")
    return prune(
        decoder, method, tokens, schedule, pattern=pattern, seed=0, batch_size=2, allocation=allocation,
        propagation=stream, domains=[tokens.flip(0)] if hasattr(method, "domains") else [], **options,
    )  # fmt: skip


@pytest.mark.methods_by_families
@each_method
@torch.no_grad()
def test_promises_on_every_family(
    decoder: Decoder, family_name: str, method: Any, tokens: Tensor, tmp_path: Path
) -> None:
    dense = {site.name: site.linear.weight.clone() for site in decoder.sites()}
    biases = {site.name: site.linear.bias is not None for site in decoder.sites()}
    units = {
        f"{kind}/{block}": (sum(member.parameters for _, member in members), members[-1][1])
        for block in range(2)
        for kind, members in trace_units(decoder, block, kinds_of(method)).items()
    }
    n_dense = decoder.n_parameters()
    seen: list[tuple[StepReport, State]] = []
    state = run(
        decoder,
        method,
        tokens,
        [0.3],
        allocation=GLOBAL,
        on_step=lambda report, state: seen.append((report, state.clone())),
    )

    # the budget of weights is met to one unit, some of every kind stay, and a unit goes with all members
    (report, _) = seen[-1]
    total = sum(row["total"] for row in report.sites)
    assert abs(report.achieved - 0.3) * total <= max(cost for cost, _ in units.values()) / 2 + 1
    gone, some = 0, dict.fromkeys(kinds_of(method), False)
    for name, (cost, output) in units.items():
        stays = state.site(output.site).mask.lines()[output.axis][output.index]
        assert torch.equal(stays.any(1), stays.all(1))
        assert stays.any() or set(kinds_of(method)) <= set(WHOLE)
        some[name.partition("/")[0]] |= bool(stays.any())
        gone += cost * int((~stays.any(1)).sum())
    assert all(some.values())
    assert gone == sum(row["removed"] for row in report.sites)

    # removed is exactly zero, kept is untouched unless something makes up for what went
    assert check(decoder, state)["integrity/violations"] == 0
    if own(method, "compensation", "none") == "none":
        for name, weight in dense.items():
            keep = state.site(name).mask.keep()
            assert torch.equal(state.site(name).weight[keep], weight[keep])
    made = {name for name in biases if (state.site(name).bias is not None) != biases[name]}
    assert made <= {output.site for _, output in units.values()}

    # compact = masked, with fewer parameters; a state from a file is the same
    assert 0 < ratios(state, decoder)["ratio/units"] < 1
    masked = decoder.model(input_ids=tokens, use_cache=False).logits
    predicted = compact_parameters(state, decoder)
    save_state(state, tmp_path / "state.safetensors")
    again = random_decoder(family_name)
    compact(again, open_state(tmp_path / "state.safetensors"))
    small = again.model(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(small, masked, rtol=1e-5, atol=1e-5)
    assert again.n_parameters() == predicted < n_dense


@each_method
def test_ratio_zero_leaves_every_bit(method: Any, tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    state = run(decoder, method, tokens, [0.0])
    after = decoder.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(site.mask.removed == 0 for _, site in state.sites())


@each_of_parts
def test_steps_resume_with_the_same_bits(method: Any, tokens: Tensor, tmp_path: Path) -> None:
    """Several shots (which look anew), and equal shares block by block."""
    for schedule in ([0.1, 0.3], [0.3]):
        seen: list[State] = []
        reports: list[StepReport] = []

        def keep(
            report: StepReport, state: State, seen: list[State] = seen, reports: list[StepReport] = reports
        ) -> None:
            seen.append(state.clone())
            reports.append(report)

        whole = run(random_decoder("opt"), method, tokens, schedule, allocation=UNIFORM, on_step=keep)
        assert len(seen) == 2  # shots, or blocks
        told = [len(rows) for report in reports for rows in report.tables.values()]
        assert bool(told) == hasattr(method, "explain")
        save_state(seen[0], tmp_path / "step.safetensors")
        again: list[StepReport] = []
        resumed = run(
            random_decoder("opt"), method, tokens, schedule, allocation=UNIFORM,
            start=open_state(tmp_path / "step.safetensors"), start_step=1,
            on_step=lambda report, _, again=again: again.append(report),
        )  # fmt: skip
        assert [report.tables for report in again] == [reports[1].tables]
        assert state_digest(resumed) == state_digest(whole)


@each_of_parts
def test_protected_blocks_and_kinds_that_stay_are_untouched(method: Any, tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    state = run(decoder, method, tokens, [0.2], units={"protect_first": 1, "kinds": ("neurons",)})
    changed = {name for name, site in state.sites() if site.mask.removed}
    assert changed == {f"model.layers.1.mlp.{path}" for path in ("gate_proj", "up_proj", "down_proj")}
