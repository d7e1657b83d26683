"""The calibrate stage on self-generated text: a kill loses one chunk, and the bytes are those of one go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prunelab.calibration.generated import COUNTS, Writer
from prunelab.calibration.tokens import load_tokens
from prunelab.errors import DataError
from prunelab.stages import calibrate
from prunelab.store.context import Context, Input, Interrupted, Result
from prunelab.store.record import Record

CONF = Path(__file__).parents[2] / "conf"
MODEL = yaml.safe_load((CONF / "model" / "embedded_llama.yaml").read_text())
RECIPE = {
    "revision": 1, "random_tokens": 1, "greedy_tokens": 2, "temperature": 1.0, "top_k": 50, "top_p": 0.95,
    "language": "english", "min_distinct": 0.4, "text_len": 12, "batch": 3,
}  # fmt: skip
IDENTITY = {
    "model": {"id": "llama"}, "recipe": RECIPE, "role": "reconstruction", "n_samples": 7, "seq_len": 12, "seed": 0
}  # fmt: skip


def context(folder: Path, inputs: dict[str, Input] | None = None, stop_after: int = 0) -> Context:
    """A context in ``folder``; with ``stop_after`` the job is asked to end at that checkpoint."""
    asked = iter(range(1, 1000))
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    return Context(
        folder, folder / "work", folder / "outputs", inputs or {}, {"model": MODEL, "device": "cpu"}, None,
        lambda what, done, total: None, lambda row: None, lambda: next(asked) == stop_after,
    )  # fmt: skip


def test_resuming_equals_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrate.run(IDENTITY, context(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        calibrate.run(IDENTITY, context(tmp_path / "cut", stop_after=2))
    (tmp_path / "cut" / "work" / "chunk-2.npy").write_bytes(b"half")  # killed while it was being written
    written: list[int] = []
    write = Writer.write
    monkeypatch.setattr(Writer, "write", lambda self, chunk: written.append(chunk) or write(self, chunk))
    resumed = calibrate.run(IDENTITY, context(tmp_path / "cut"))
    assert written[0] == 2  # the first two chunks were not written again
    assert resumed.metrics == whole.metrics
    for name in ("tokens.npy", "tokens.json"):
        one, other = (tmp_path / place / "outputs" / name for place in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [row["chunk"] for row in rows] == list(range(len(rows)))
    for name in COUNTS:
        assert sum(row[name] for row in rows) == whole.metrics[f"generated/{name}"]


def test_one_seed_is_one_file(tmp_path: Path) -> None:
    seeds = {"first": 0, "again": 0, "other": 1}
    for name, seed in seeds.items():
        calibrate.run({**IDENTITY, "seed": seed}, context(tmp_path / name))
    for file in ("tokens.npy", "tokens.json"):
        first, again, other = ((tmp_path / name / "outputs" / file).read_bytes() for name in seeds)
        assert first == again != other


def test_more_windows_only_append(tmp_path: Path) -> None:
    calibrate.run(IDENTITY, context(tmp_path / "more"))
    calibrate.run({**IDENTITY, "n_samples": 4}, context(tmp_path / "less"))
    more, less = (load_tokens(tmp_path / place / "outputs" / "tokens.npy") for place in ("more", "less"))
    assert more.role == less.role == "reconstruction"
    assert more.tokens.shape == (7, 12)
    np.testing.assert_array_equal(more.tokens[:4], less.tokens)
    assert more.source["counts"]["kept"] >= 7


def test_a_mixture_takes_the_first_windows_of_each_part(tmp_path: Path) -> None:
    def made(name: str, **change: Any) -> Input:
        calibrate.run({**IDENTITY, **change}, context(tmp_path / name))
        return Input(
            Record("calibrate", "", "", {}, {}, {}, {}, {}, provenance={}), tmp_path / name / "outputs"
        )

    inputs = {"same": made("a", seed=1, n_samples=2), "self_generated": made("b", n_samples=4)}
    identity = {"parts": {"same": 2, "self_generated": 3}, "role": "reconstruction", "seq_len": 12}
    result: Result = calibrate.run(identity, context(tmp_path / "mix", inputs))
    found = load_tokens(tmp_path / "mix" / "outputs" / "tokens.npy")
    a, b = (load_tokens(place.folder / "tokens.npy").tokens for place in inputs.values())
    assert sorted(map(tuple, found.tokens.tolist())) == sorted(map(tuple, [*a.tolist(), *b[:3].tolist()]))
    assert result.metrics["parts/self_generated"] == 3
    assert result.metrics["samples"] == 5
    assert found.source["sources"]["same"]["seed"] == 1
    with pytest.raises(DataError, match=r"part 'same': 3 windows"):
        calibrate.run({**identity, "parts": {"same": 3}}, context(tmp_path / "over", inputs))
