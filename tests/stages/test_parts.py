"""Stages that finish a model block by block: ended after any step they go on, and a part that is gone is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_conf import option

from prunelab.calibration.tokens import build_token_set, save_tokens
from prunelab.config.schema import Model
from prunelab.config.trial import group_of
from prunelab.errors import StoreError
from prunelab.pattern.units import Units
from prunelab.plan.pipeline import model_identity
from prunelab.stages import prune, reconstruct
from prunelab.store.context import Context, Input, Interrupted
from prunelab.store.record import Record

RUNTIME = {
    "model": option("model", "embedded_llama"), "device": "cpu", "batch_tokens": 32, "activation_gib": None,
    "activation_place": "disk", "activation_dtype": None, "method": option("method", "wanda"),
    "allocation": {"name": "uniform"},
    "reconstruction": option("reconstruction", "cross_block", epochs=1, min_updates=0, batch=2, patience=1),
}  # fmt: skip
MODEL = {"model": model_identity(group_of(Model, RUNTIME["model"]))}
PRUNE = MODEL | {
    "method": {}, "pattern": "unstructured", "allocation": "uniform", "seed": 0, "n": None, "m": None, "within": None,
    "propagation": "pruned", "schedule": [0.5],
}  # fmt: skip
Stage = Any  # the module of a stage
FOUR_SHOTS = [0.1, 0.2, 0.3, 0.4]


def units(method: str, allocation: str, schedule: list[float], compensation: str) -> dict[str, Any]:
    """The identity of a stage that removes units, with the runtime's method under its own name."""
    pattern = Units(compensation=compensation).identity()
    return MODEL | {"method": {"name": method}, "allocation": allocation, "seed": 0, "propagation": "dense",
                    "schedule": schedule, **pattern}  # fmt: skip


LORA = option(
    "reconstruction",
    "lora",
    epochs=4,
    batch=2,
    warmup=0,
    save_every=1,
    held_out=0.1,
    keep="best",
    look_every=3,
)
WHOLE = {"seed": 0, "scope": "model"} | MODEL
CORRECTED = {
    "method": {"name": "surgeon_elements"}, "allocation": "global", "propagation": "dense", "schedule": FOUR_SHOTS,
    "between_shots": option("between_shots", "lora_surgeon", share=0.5, learning_rate=1e-3),
}  # fmt: skip
STAGES = {
    "prune": (prune, PRUNE),
    "reconstruct": (reconstruct, {"seed": 0} | MODEL),
    "between": (reconstruct, {"seed": 0, "prune": PRUNE} | MODEL),
    "whole": (reconstruct, WHOLE),
    "units by block": (prune, units("flap", "uniform", [0.3], "bias")),
    "units by shot": (prune, units("flap", "global", FOUR_SHOTS, "bias")),
    "elements, corrected": (prune, PRUNE | CORRECTED),
    "units by gradient": (prune, units("llm_pruner", "uniform", FOUR_SHOTS, "least_squares")),
}
each_stage = pytest.mark.parametrize(("stage", "identity"), STAGES.values(), ids=list(STAGES))


def record() -> Record:
    return Record("", "", "", {}, {}, {}, {}, {}, provenance={})


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """Four windows: three to train on and one that decides when training ends."""
    folder = tmp_path_factory.mktemp("tokens")
    drawn = np.random.default_rng(0).integers(3, 500, (4, 16), dtype=np.int32)
    save_tokens(build_token_set(drawn, "mask", {"name": "random"}, 512), folder / "tokens.npy")
    return Input(record(), folder)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, tokens: Input) -> Input:
    folder = tmp_path_factory.mktemp("pruned")
    prune.run(PRUNE, context(folder, {"calibrate": tokens}))
    return Input(record(), folder / "outputs")


def context(
    folder: Path, inputs: dict[str, Input], stop_after: int = 0, identity: Mapping[str, Any] = PRUNE
) -> Context:
    """A context in ``folder``; with ``stop_after`` the job is asked to end at that checkpoint. The method is the one that
    ``identity`` names, or else wanda."""
    name = identity.get("method", {}).get("name")
    runtime = RUNTIME if name is None else {
        **RUNTIME, "method": option("method", name), "allocation": {"name": identity["allocation"]},
    }  # fmt: skip
    if "between_shots" in identity:
        runtime = {**runtime, "between_shots": identity["between_shots"]}
    if identity.get("scope") == "model":
        runtime = {**runtime, "reconstruction": LORA}
    asked = iter(range(1, 1000))
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    return Context(
        folder, folder / "work", folder / "outputs", inputs, runtime, None,
        lambda what, done, total: None, lambda row: None, lambda: next(asked) == stop_after,
    )  # fmt: skip


@each_stage
def test_ended_after_any_step_the_rest_gives_the_same_bytes(
    stage: Stage, identity: dict[str, Any], tmp_path: Path, tokens: Input, pruned: Input
) -> None:
    inputs = {"calibrate": tokens} | (
        {"prune": pruned} if stage is reconstruct and "prune" not in identity else {}
    )
    whole = stage.run(identity, context(tmp_path / "whole", inputs, 0, identity))
    expected = (tmp_path / "whole" / "outputs" / "state.safetensors").read_bytes()
    for step in (1, 2, 3):
        folder = tmp_path / str(step)
        with pytest.raises(Interrupted):
            stage.run(identity, context(folder, inputs, step, identity))
        again = stage.run(identity, context(folder, inputs, 0, identity))
        assert again.tables == whole.tables
        assert (folder / "outputs" / "state.safetensors").read_bytes() == expected
        assert not list((folder / "work").glob("activations-*"))


@each_stage
def test_a_part_that_is_gone_is_named_and_not_passed_over(
    stage: Stage, identity: dict[str, Any], tmp_path: Path, tokens: Input, pruned: Input
) -> None:
    inputs = {"calibrate": tokens} | (
        {"prune": pruned} if stage is reconstruct and "prune" not in identity else {}
    )
    with pytest.raises(Interrupted):
        stage.run(identity, context(tmp_path, inputs, 2, identity))
    # a part of shots or of a whole repair takes the place of those before
    part = "part-2" if len(identity.get("schedule", ())) > 1 else "part-1"
    part = "part-2" if identity.get("scope") == "model" else part
    (tmp_path / "work" / f"{part}.safetensors").unlink()
    with pytest.raises(StoreError, match=rf"{part}\.safetensors .* rm -r .*work"):
        stage.run(identity, context(tmp_path, inputs, 0, identity))


def test_a_repair_that_chooses_its_masks_says_what_pruning_would(
    tmp_path: Path, tokens: Input, pruned: Input
) -> None:
    alone = prune.run(PRUNE, context(tmp_path / "prune", {"calibrate": tokens}))
    repaired = reconstruct.run(
        MODEL | {"seed": 0}, context(tmp_path / "before", {"calibrate": tokens, "prune": pruned})
    )
    both = reconstruct.run(
        MODEL | {"seed": 0, "prune": PRUNE}, context(tmp_path / "between", {"calibrate": tokens})
    )
    assert set(both.metrics) == set(alone.metrics) | set(repaired.metrics)
    assert set(both.tables) == set(alone.tables) | set(repaired.tables)
    assert both.tables["shots"] == alone.tables["shots"]
    counts = [[(row["site"], row["removed"]) for row in found.tables["sites"]] for found in (both, alone)]
    assert counts[0] == counts[1]
    for name in ("ratio/weights", "parameters/dense", "shots", "integrity/masked"):
        assert both.metrics[name] == alone.metrics[name]
