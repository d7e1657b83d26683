"""Stages that finish a model block by block: ended after any step they go on, and a part that is gone is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prunelab.calibration.tokens import build_token_set, save_tokens
from prunelab.config.schema import Model
from prunelab.config.trial import group_of
from prunelab.errors import StoreError
from prunelab.plan.pipeline import model_identity
from prunelab.stages import prune, reconstruct
from prunelab.store.context import Context, Input, Interrupted
from prunelab.store.record import Record

CONF = Path(__file__).parents[2] / "conf"


def option(group: str, name: str, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text()) | changes


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
STAGES = [
    (prune, PRUNE),
    (reconstruct, {"seed": 0} | MODEL),
    (reconstruct, {"seed": 0, "prune": PRUNE} | MODEL),
]


def record() -> Record:
    return Record("", "", "", {}, {}, {}, {}, {}, provenance={})


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """Eight windows: seven to train on and one that decides when training ends."""
    folder = tmp_path_factory.mktemp("tokens")
    drawn = np.random.default_rng(0).integers(3, 500, (8, 16), dtype=np.int32)
    save_tokens(build_token_set(drawn, "mask", {"name": "random"}, 512), folder / "tokens.npy")
    return Input(record(), folder)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, tokens: Input) -> Input:
    folder = tmp_path_factory.mktemp("pruned")
    prune.run(PRUNE, context(folder, {"calibrate": tokens}))
    return Input(record(), folder / "outputs")


def context(folder: Path, inputs: dict[str, Input], stop_after: int = 0) -> Context:
    """A context in ``folder``; with ``stop_after`` the job is asked to end at that checkpoint."""
    asked = iter(range(1, 1000))
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    return Context(
        folder, folder / "work", folder / "outputs", inputs, RUNTIME, None,
        lambda what, done, total: None, lambda row: None, lambda: next(asked) == stop_after,
    )  # fmt: skip


@pytest.mark.parametrize(("stage", "identity"), STAGES, ids=["prune", "reconstruct", "between"])
def test_ended_after_any_step_the_rest_gives_the_same_bytes(
    stage: Stage, identity: dict[str, Any], tmp_path: Path, tokens: Input, pruned: Input
) -> None:
    inputs = {"calibrate": tokens} | (
        {"prune": pruned} if stage is reconstruct and "prune" not in identity else {}
    )
    whole = stage.run(identity, context(tmp_path / "whole", inputs))
    expected = (tmp_path / "whole" / "outputs" / "state.safetensors").read_bytes()
    for step in (1, 2, 3):
        folder = tmp_path / str(step)
        with pytest.raises(Interrupted):
            stage.run(identity, context(folder, inputs, step))
        again = stage.run(identity, context(folder, inputs))
        assert again.tables == whole.tables
        assert (folder / "outputs" / "state.safetensors").read_bytes() == expected
        assert not list((folder / "work").glob("activations-*"))


@pytest.mark.parametrize(("stage", "identity"), STAGES, ids=["prune", "reconstruct", "between"])
def test_a_part_that_is_gone_is_named_and_not_passed_over(
    stage: Stage, identity: dict[str, Any], tmp_path: Path, tokens: Input, pruned: Input
) -> None:
    inputs = {"calibrate": tokens} | (
        {"prune": pruned} if stage is reconstruct and "prune" not in identity else {}
    )
    with pytest.raises(Interrupted):
        stage.run(identity, context(tmp_path, inputs, 2))
    (tmp_path / "work" / "part-1.safetensors").unlink()
    with pytest.raises(StoreError, match=r"part-1\.safetensors .* rm -r .*work"):
        stage.run(identity, context(tmp_path, inputs))


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
