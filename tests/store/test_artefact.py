"""A stage's folder: finished or resumable, never in between; damage is noticed."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from prunelab.config.fingerprint import fingerprint
from prunelab.errors import StoreError
from prunelab.store.artefact import begin, commit, quarantine, stage_lock, verified_record
from prunelab.store.context import Context
from prunelab.store.layout import DONE, METRICS, OUTPUTS, check_writable, index, is_done, locate
from prunelab.store.record import Record, read_record

KEY = fingerprint("prune", {"a": 1}, {})


def record(**changes: object) -> Record:
    values = {
        "kind": "prune", "key": KEY, "slug": "s", "identity": {"a": 1}, "inputs": {}, "metrics": {"m": 1.5}, "tables": {},
        "cost": {"seconds": 1.0},
    }  # fmt: skip
    return Record(**{**values, **changes})


def finished(folder: Path) -> Path:
    work = begin(folder, {"key": KEY})
    (work / OUTPUTS / "state.bin").write_bytes(b"x" * 1000)
    commit(folder, record())
    return folder


def test_commit_then_read(tmp_path: Path) -> None:
    folder = finished(tmp_path / "prune" / f"s-{KEY[:16]}")
    assert is_done(folder)
    assert verified_record(folder, KEY).outputs["state.bin"]["bytes"] == 1000
    assert sorted(p.name for p in folder.iterdir()) == [DONE, OUTPUTS, "record.json", "spec.json"]
    assert index(tmp_path) == {KEY[:16]: folder}
    assert locate(tmp_path, "prune", KEY, f"prune/other-name-{KEY[:16]}") == folder


def test_killed_before_done_starts_over_but_keeps_progress(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    work = begin(folder, {})
    (work / "shot-1.bin").write_bytes(b"progress")
    (work / OUTPUTS / "half").write_bytes(b"torn")
    (folder / OUTPUTS).mkdir()
    (folder / OUTPUTS / "old").write_bytes(b"renamed, but DONE never came")
    work = begin(folder, {})
    assert (work / "shot-1.bin").read_bytes() == b"progress"
    assert not list((work / OUTPUTS).iterdir())
    assert not (folder / OUTPUTS).exists()
    assert not is_done(folder)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "record", "key"])
def test_damage_is_noticed_and_named(tmp_path: Path, damage: str) -> None:
    folder = finished(tmp_path / "prune" / "s")
    state = folder / OUTPUTS / "state.bin"
    match damage:
        case "cut":
            state.write_bytes(b"x" * 999)
        case "flip":
            state.write_bytes(b"x" * 999 + b"y")
        case "missing":
            state.unlink()
        case "record":
            (folder / "record.json").write_text('{"schema": 1, "kind"')
    with pytest.raises(StoreError, match=r"record\.json" if damage == "record" else "state|key|holds"):
        verified_record(folder, "f" * 64 if damage == "key" else KEY)
    place = quarantine(tmp_path, folder)
    assert place.parent.name == "quarantine"
    assert not folder.exists()


def test_infinite_metrics_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    begin(folder, {})
    commit(folder, record(metrics={"ppl/a": float("inf")}))
    assert float(read_record(folder).metrics["ppl/a"]) == float("inf")


def test_a_record_of_another_schema_is_refused(tmp_path: Path) -> None:
    folder = finished(tmp_path / "s")
    plain = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**plain, "schema": 99}))
    with pytest.raises(StoreError, match="schema 99; this one reads schema"):
        read_record(folder)


def context(folder: Path) -> Context:
    work = begin(folder, {})
    return Context(folder, work, work / OUTPUTS, {}, {}, None, lambda *a: None, lambda row: None)


def test_rows_after_the_last_checkpoint_are_cut_on_resume(tmp_path: Path) -> None:
    first = context(tmp_path)
    first.log({"shot": 1})
    first.checkpoint(1, {"kept": [1]})
    first.log({"shot": 2})
    again = context(tmp_path)
    assert again.resume() == (1, {"kept": [1]})
    again.log({"shot": 2})
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert rows == [{"shot": 1}, {"shot": 2}]


def hold(store: Path, started: Path, seconds: float) -> None:
    with stage_lock(store, KEY):
        started.touch()
        time.sleep(seconds)


def test_the_second_process_waits(tmp_path: Path) -> None:
    started, said = tmp_path / "started", []
    other = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, started, 0.5))
    other.start()
    while not started.exists():
        time.sleep(0.02)
    with stage_lock(tmp_path, KEY, "a stage", said.append):
        assert said[0].startswith("waiting for a stage: ")
    other.join()


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StoreError, match=r"paths\.store=.*PRUNELAB_HOME"):
        check_writable(blocked / "store", "paths.store")
