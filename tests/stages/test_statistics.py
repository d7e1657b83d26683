"""The statistics stage: a kill loses one block, wherever it falls, and the files are those of one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prunelab.calibration.tokens import build_token_set, save_tokens
from prunelab.passes import statistics as passes
from prunelab.stages import statistics
from prunelab.store.context import Context, Input, Interrupted
from prunelab.store.record import Record

CONF = Path(__file__).parents[2] / "conf"
MODEL = yaml.safe_load((CONF / "model" / "embedded_llama.yaml").read_text())
IDENTITY = {"model": {"id": "llama"}, "statistics": ["input_gram", "input_norm"]}
RUNTIME = {
    "model": MODEL,
    "device": "cpu",
    "batch_tokens": 32,
    "activation_gib": None,
    "activation_place": "auto",
    "activation_dtype": None,
}


@pytest.fixture
def tokens(tmp_path: Path) -> Input:
    """Three windows of random tokens as a stage would leave them."""
    drawn = np.random.default_rng(0).integers(3, 500, (3, 16), dtype=np.int32)
    (tmp_path / "tokens").mkdir()
    save_tokens(build_token_set(drawn, "mask", {"name": "random"}, 512), tmp_path / "tokens" / "tokens.npy")
    return Input(Record("calibrate", "", "", {}, {}, {}, {}, {}, provenance={}), tmp_path / "tokens")


def context(folder: Path, tokens: Input, stop_after: int = 0, **runtime: Any) -> Context:
    """A context in ``folder``; with ``stop_after`` the job is asked to end at that checkpoint."""
    asked = iter(range(1, 1000))
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    return Context(
        folder, folder / "work", folder / "outputs", {"calibrate": tokens}, RUNTIME | runtime, None,
        lambda what, done, total: None, lambda row: None, lambda: next(asked) == stop_after,
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """What the stage left."""
    return {path.name: path.read_bytes() for path in (folder / "outputs").iterdir()}


def test_resuming_equals_one_go(tmp_path: Path, tokens: Input, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = statistics.run(IDENTITY, context(tmp_path / "whole", tokens))
    assert sorted(files(tmp_path / "whole")) == [
        f"block-{i}.safetensors" for i in range(whole.metrics["blocks"])
    ]
    with pytest.raises(Interrupted):
        statistics.run(IDENTITY, context(tmp_path / "cut", tokens, stop_after=2))
    (tmp_path / "cut" / "work" / "block-2.safetensors").write_bytes(b"half")  # killed while it was written
    collected: list[int] = []
    collect = passes.collect_block
    monkeypatch.setattr(
        passes,
        "collect_block",
        lambda d, i, *args, **more: collected.append(i) or collect(d, i, *args, **more),
    )
    resumed = statistics.run(IDENTITY, context(tmp_path / "cut", tokens))
    assert collected[0] == 2  # the first two were not collected again
    assert resumed.metrics == whole.metrics
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_kill_between_the_last_block_and_the_end_is_no_loss(tmp_path: Path, tokens: Input) -> None:
    folder = tmp_path / "cut"
    whole = statistics.run(IDENTITY, context(tmp_path / "whole", tokens))
    last = whole.metrics["blocks"] - 1
    with pytest.raises(Interrupted):
        statistics.run(IDENTITY, context(folder, tokens, stop_after=last + 1))
    (folder / "work" / f"block-{last}.safetensors").unlink()  # moved already, and lost with the outputs
    statistics.run(IDENTITY, context(folder, tokens))
    assert files(folder) == files(tmp_path / "whole")


def test_states_on_disk_change_no_bit(tmp_path: Path, tokens: Input) -> None:
    left = tmp_path / "disk" / "work" / "activations-of-a-killed-attempt"
    left.mkdir(parents=True)
    (left / "0.npy").write_bytes(b"x")
    for name, limit in (("memory", None), ("disk", 1e-9)):
        statistics.run(IDENTITY, context(tmp_path / name, tokens, activation_gib=limit))
    assert files(tmp_path / "memory") == files(tmp_path / "disk")
    assert not list((tmp_path / "disk" / "work").glob("activations-*"))
