"""Promises of every repair on every family, and the facts about streams, targets, windows and roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.evaluation.integrity import check
from prunelab.evaluation.walk import measure
from prunelab.methods.magnitude import Magnitude
from prunelab.models.activation import Placement
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.models.stream import advance, open_stream
from prunelab.passes.shots import prune
from prunelab.pattern.weights import RowsColumns
from prunelab.reconstruction import tuning, walk
from prunelab.reconstruction.walk import RepairReport, reconstruct
from prunelab.structures.state import State, apply_state, open_state, save_state, state_digest
from prunelab.structures.surgery import compact

CONF = sorted((Path(__file__).parents[2] / "conf" / "reconstruction").glob("*.yaml"))
NAMES = [  # LoRA takes the whole model: test_lora.py
    path.stem for path in CONF if path.stem != "none" and not path.stem.startswith("lora")
]
DEEP = {"num_hidden_layers": 3}
each_repair = pytest.mark.parametrize("name", NAMES)
Make = Callable[..., Any]


@pytest.fixture
def tokens(tokens: Tensor) -> Tensor:
    """Two batches and a sequence."""
    return torch.cat([tokens, tokens.roll(1)])[:7]


def run(decoder: Decoder, state: Any, tokens: Tensor, spec: Any, **options: Any) -> State:
    return reconstruct(decoder, state, tokens, spec, **{"seed": 0, "batch_size": 3} | options)


def last_hidden(decoder: Decoder, tokens: Tensor) -> Tensor:
    """What leaves the last block, before the final norm, by the model's own forward."""
    caught: list[Any] = []
    handle = decoder.blocks[-1].register_forward_hook(lambda module, args, out: caught.append(out))
    with torch.no_grad():
        decoder.model(input_ids=tokens, use_cache=False)
    handle.remove()
    return caught[0][0] if isinstance(caught[0], tuple) else caught[0]


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_yaml_and_dataclass_agree(path: Path, option: Make) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["name"] == path.stem
    if path.stem == "none":
        assert set(config) == {"name"}
        return
    spec = option("reconstruction", path.stem)
    names = [field.name for field in fields(spec)]
    assert {"_target_", *names} == set(config)
    assert names[:2] == ["name", "revision"]
    assert all(field.default is MISSING for field in fields(spec))


@pytest.mark.typical_families
@each_repair
def test_promises(
    decoder: Decoder, family_name: str, name: str, tokens: Tensor, spec: Make, pruned: Make
) -> None:
    state = pruned(family_name, tokens)
    before = state_digest(state)
    dense = {key: value.clone() for key, value in decoder.model.state_dict().items()}
    reports: list[RepairReport] = []
    found = run(decoder, state, tokens, spec(name), on_block=lambda report, _: reports.append(report))
    assert state_digest(state) == before
    # masks as they were, removed weights exactly zero; beside linear layers the norms moved where all is trained
    assert check(decoder, found)["integrity/violations"] == 0
    for site_name, site in found.sites():
        assert torch.equal(site.mask.keep(), state.site(site_name).mask.keep())
        assert not torch.equal(site.weight, state.site(site_name).weight)
    linear = {f"{site.name}.{part}" for site in decoder.sites() for part in ("weight", "bias")}
    for key, value in decoder.model.state_dict().items():
        assert key in linear or torch.equal(value, dense[key]) == (key not in found.parameters)
    others = set(decoder.other_parameters())
    assert others
    assert set(found.parameters) == (set() if name == "layer" else others)
    assert not any("forward" in vars(module) for module in decoder.blocks.modules())
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())
    rows = [row for report in reports for row in report.blocks]
    assert [row["block"] for row in rows] == list(range(len(decoder.blocks)))
    # random models of two blocks and seven sequences: whatever was fitted, calibration error fell. Layers that are
    # fitted one by one promise it of their own outputs, from which a block's follows only while its input is dense.
    at = 0 if name == "layer" else -1
    assert rows[at]["error"] < rows[at]["error_before"]


@each_repair
def test_structured_masks_are_kept_too(name: str, tokens: Tensor, spec: Make) -> None:
    decoder = random_decoder("opt")
    state = prune(
        decoder, Magnitude("magnitude", 1, None), None, [0.3], pattern=RowsColumns(), seed=0, batch_size=1
    ).clone()
    fresh = random_decoder("opt")
    found = run(fresh, state, tokens, spec(name))
    assert check(fresh, found)["integrity/violations"] == 0
    assert sum(site.mask.removed for _, site in found.sites()) > 0
    assert state_digest(found) != state_digest(state)
    small = random_decoder("opt")
    compact(small, found.clone())  # norms as trained, layers smaller
    logits = [model.model(input_ids=tokens, use_cache=False).logits for model in (fresh, small)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@each_repair
def test_evaluation_puts_all_that_was_trained_in_place(
    name: str, tokens: Tensor, spec: Make, pruned: Make, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = []
    found = run(
        random_decoder("opt"), pruned("opt", tokens), tokens, spec(name),
        on_block=lambda report, _: rows.extend(report.blocks),
    )  # fmt: skip
    save_state(found, tmp_path / "state")
    fresh = random_decoder("opt")
    applied = partial(apply_state, fresh, open_state(tmp_path / "state"))
    measured = measure(fresh, applied, {}, {"calibration": tokens}, 3)
    assert [row["error"] for row in measured.blocks] == pytest.approx(
        [row["error"] for row in rows], rel=1e-6
    )


@pytest.mark.parametrize("name", ["block", "block_gp", "cross_block"])
def test_weights_alone_leave_the_norms(name: str, tokens: Tensor, spec: Make, pruned: Make) -> None:
    state = pruned("opt", tokens)
    errors = {}
    for trains in ("weights", "all"):
        decoder, rows = random_decoder("opt"), list[dict[str, Any]]()
        settings = spec(name, trains=trains, epochs=20)
        found = run(
            decoder, state, tokens, settings, on_block=lambda report, _, rows=rows: rows.extend(report.blocks)
        )
        dense = random_decoder("opt").other_parameters()
        for key, value in decoder.other_parameters().items():
            assert torch.equal(value, dense[key]) == (trains == "weights")
        assert bool(found.parameters) == (trains == "all")
        errors[trains] = rows[-1]["error"]
    assert errors["all"] < errors["weights"]


@each_repair
def test_bfloat16(name: str, tokens: Tensor, spec: Make, pruned: Make) -> None:
    decoder = random_decoder("llama", dtype=torch.bfloat16)
    found = run(decoder, pruned("llama", tokens, dtype=torch.bfloat16), tokens, spec(name))
    check(decoder, found)
    assert {site.weight.dtype for _, site in found.sites()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["block", "block_gp", "cross_block"])
def test_no_epochs_leave_the_pruners_weights(name: str, tokens: Tensor, spec: Make, pruned: Make) -> None:
    state = pruned("opt", tokens, "sparsegpt")
    assert state_digest(run(random_decoder("opt"), state, tokens, spec(name, epochs=0))) == state_digest(
        state
    )


@pytest.mark.typical_families
@each_repair
def test_sparsity_zero_means_error_zero_and_the_same_bits(
    decoder: Decoder, family_name: str, name: str, tokens: Tensor, spec: Make, pruned: Make
) -> None:
    state = pruned(family_name, tokens, ratio=0.0)
    rows: list[dict[str, Any]] = []
    found = run(decoder, state, tokens, spec(name), on_block=lambda report, _: rows.extend(report.blocks))
    assert state_digest(found) == state_digest(state)
    assert all(row["error"] == row["mse"] == 0 for row in rows)
    with torch.no_grad():
        logits = decoder.model(input_ids=tokens, use_cache=False).logits
        expected = random_decoder(family_name).model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(logits, expected)


def test_the_first_block_has_one_target_either_way(tokens: Tensor, spec: Make, pruned: Make) -> None:
    state = pruned("llama", tokens)
    local, world = (run(random_decoder("llama"), state, tokens, spec(n)) for n in ("block", "block_gp"))
    first = [name for name in state.names if ".0." in name]
    for name in first:
        assert torch.equal(local.site(name).weight, world.site(name).weight)
    assert state_digest(local) != state_digest(world)


@pytest.mark.parametrize("name", ["block", "block_gp"])
def test_the_logged_error_is_the_training_loss_under_gp_only(
    name: str, tokens: Tensor, spec: Make, pruned: Make
) -> None:
    state = pruned("llama", tokens, **DEEP)
    reports: list[RepairReport] = []
    decoder = random_decoder("llama", **DEEP)
    run(decoder, state, tokens, spec(name, epochs=10), on_block=lambda report, _: reports.append(report))
    for report in reports:
        row = report.blocks[0]
        same = row["mse"] == pytest.approx(report.fit["loss_after"], rel=1e-9)
        assert same == (name == "block_gp" or row["block"] == 0)
        assert report.fit["loss_after"] < report.fit["loss_first_epoch"]


@each_repair
def test_the_last_error_is_that_of_two_whole_models(
    name: str, tokens: Tensor, spec: Make, pruned: Make
) -> None:
    state = pruned("gemma3", tokens)
    rows: list[dict[str, Any]] = []
    decoder = random_decoder("gemma3")
    run(decoder, state, tokens, spec(name), on_block=lambda report, _: rows.extend(report.blocks))
    dense, sparse = (last_hidden(model, tokens).double() for model in (random_decoder("gemma3"), decoder))
    error = (dense - sparse).square()
    assert rows[-1]["mse"] == pytest.approx(float(error.mean()), rel=1e-4)
    assert rows[-1]["error"] == pytest.approx(float(error.sum() / dense.square().sum()), rel=1e-4)


def test_windows_visit_every_block_twice_and_hold_two_dense_ones_at_most(
    tokens: Tensor, spec: Make, pruned: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = pruned("llama", tokens, **DEEP)
    visited: list[list[int]] = []
    alive: list[list[int]] = []
    seen: list[list[Tensor]] = []
    fit, measure, repair = tuning.Tuning.repair, walk._measure, walk._Walk.repair

    def spy(self: Any, unit: Any, say: Any) -> dict[str, float]:
        visited.append(list(unit.blocks))
        return fit(self, unit, say)

    def count(self: Any, window: range) -> dict[str, float]:
        alive.append(sorted(self.members))  # blocks whose dense weights are still held
        return repair(self, window)

    def look(streams: Any, before: float) -> dict[str, float]:
        seen.append([streams.dense.read(rows).clone() for rows in streams.batches()])
        return measure(streams, before)

    monkeypatch.setattr(tuning.Tuning, "repair", spy)
    monkeypatch.setattr(walk, "_measure", look)
    monkeypatch.setattr(walk._Walk, "repair", count)
    run(random_decoder("llama", **DEEP), state, tokens, spec("cross_block"), on_block=lambda *_: None)
    assert visited == [[0], [0, 1], [1, 2], [2]]
    assert alive == visited
    untouched = random_decoder("llama", **DEEP)
    stream = open_stream(untouched, tokens, 3)
    for index, found in enumerate(seen):
        advance(untouched, index, stream)
        assert torch.equal(torch.cat(found), stream.read(slice(None)))


@pytest.mark.parametrize(
    ("name", "window", "stride"),
    [
        ("layer", 1, 1),
        ("block", 1, 1),
        ("block_gp", 1, 1),
        ("cross_block", 2, 1),
        ("block", 2, 2),
        ("block", 3, 2),
    ],
)
def test_resume_after_any_step_is_one_go(
    name: str, window: int, stride: int, tokens: Tensor, spec: Make, pruned: Make, tmp_path: Path
) -> None:
    state = pruned("opt", tokens, **DEEP)
    settings = spec(name) if name == "layer" else spec(name, window=window, stride=stride)
    parts: list[tuple[int, State]] = []
    whole = run(
        random_decoder("opt", **DEEP), state, tokens, settings,
        on_block=lambda report, part: parts.append((report.done, part.clone())),
    )  # fmt: skip
    assert parts[-1][0] == 3
    items: dict[str, Any] = {}
    parameters: dict[str, Tensor] = {}
    for done, part in parts:
        items |= part.items
        parameters |= part.parameters
        save_state(State(state.model, items, parameters), tmp_path / "start.safetensors")
        fresh = random_decoder("opt", **DEEP)
        start = open_state(tmp_path / "start.safetensors")
        resumed = run(fresh, state, tokens, settings, start=start, start_block=done)
        assert state_digest(resumed) == state_digest(whole)
        check(fresh, whole)


@each_repair
def test_placement_never_influences_a_weight(
    name: str, tokens: Tensor, spec: Make, pruned: Make, tmp_path: Path
) -> None:
    state = pruned("qwen3", tokens)
    digests = set()
    for options in (
        {},
        {"on_block": lambda *_: None},
        {"placement": Placement("disk", None, tmp_path)},
        {"placement": Placement("auto", 1e-5, tmp_path)},
    ):
        digests.add(state_digest(run(random_decoder("qwen3"), state, tokens, spec(name), **options)))
    assert len(digests) == 1
    assert not list(tmp_path.iterdir())


@each_repair
def test_the_size_of_a_forward_leaves_no_trace(name: str, tokens: Tensor, spec: Make, pruned: Make) -> None:
    """Products of other shapes round in other ways, so states agree to float32 rounding, not to the bit."""
    state = pruned("opt", tokens, "sparsegpt")
    length = tokens.shape[1]
    settings = spec(name) if name == "layer" else spec(name, batch=4, part_tokens=2 * length)
    found = [run(random_decoder("opt"), state, tokens, settings, batch_size=size) for size in (1, 3, 16)]
    for site_name, site in found[0].sites():
        for other in found[1:]:
            torch.testing.assert_close(other.site(site_name).weight, site.weight, rtol=1e-4, atol=1e-5)


@each_repair
def test_other_tokens_change_weights_and_no_mask(name: str, tokens: Tensor, spec: Make, pruned: Make) -> None:
    state = pruned("mistral", tokens, "wanda")
    found = [
        run(random_decoder("mistral"), state, text, spec(name)) for text in (tokens, (3 * tokens + 1) % 64)
    ]
    for site_name, site in state.sites():
        weights = [other.site(site_name).weight for other in found]
        assert not torch.equal(*weights)
        for other in found:
            assert torch.equal(other.site(site_name).mask.keep(), site.mask.keep())


def test_stopping_text_ends_training_and_is_a_role_of_its_own(
    tokens: Tensor, spec: Make, pruned: Make
) -> None:
    state = pruned("llama", tokens)
    patient = spec("block_gp", epochs=30, learning_rate=0.05, patience=1)
    updates: list[float] = []
    run(
        random_decoder("llama"), state, tokens, patient, stopping=tokens.flip(1),
        on_block=lambda report, _: updates.append(report.fit["updates"]),
    )  # fmt: skip
    assert all(3 <= count < 30 * 3 for count in updates)
    with pytest.raises(ConfigError, match="stopping"):
        run(random_decoder("llama"), state, tokens, patient)
    with pytest.raises(ConfigError, match="stopping"):
        run(random_decoder("llama"), state, tokens, spec("block_gp"), stopping=tokens)


def test_what_does_not_fit_together_is_named(tokens: Tensor, spec: Make, pruned: Make) -> None:
    state = pruned("llama", tokens)
    for options, changes, message in (
        ({}, {"stride": 2}, r"reconstruction\.stride=2"),
        ({"start_block": 1}, {}, "start"),
        ({"start_block": 7, "start": state}, {}, "start_block=7"),
        ({"placement": Placement("ram", 1e-9)}, {}, r"runtime\.activation_gib"),
        ({"placement": Placement("cloud")}, {}, r"runtime\.activation_place"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=message):
            run(random_decoder("llama"), state, tokens, spec("block", **changes), **options)
    half = pruned("llama", tokens, dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"float32 \| bfloat16"):
        run(random_decoder("llama", dtype=torch.float16), half, tokens, spec("block"))


def test_progress_is_told_block_by_block(tokens: Tensor, spec: Make, pruned: Make) -> None:
    rows: list[Any] = []
    state = pruned("llama", tokens)
    run(random_decoder("llama"), state, tokens, spec("block"), progress=rows.append)
    assert [(row["block"], row["done"], row["total"]) for row in rows] == [
        (0, 1, 2),
        (0, 2, 2),
        (1, 1, 2),
        (1, 2, 2),
    ]
    fresh = random_decoder("llama")
    apply_state(fresh, state)  # the walk gave the decoder storage of its own, not the state's
    check(fresh, state)
