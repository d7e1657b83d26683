"""The mirror against a live loopback server, offline files read back, and SIGTERM in a subprocess."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prunelab.errors import ConfigError
from prunelab.tracking.base import NullTracker, RunInfo, run_id
from prunelab.tracking.wandb.mirror import WandbTracker, open_tracker

CONFIG = {
    "name": "wandb",
    "project": "prunelab",
    "entity": None,
    "mode": None,
    "tags": ["lab"],
    "finish_timeout": 30,
}


def info(folder: Path) -> RunInfo:
    config = {"method": "surgeon", "ratio": 0.3, "seed": 0, "model.name": "llama", "config": {"a": {"b": 1}}}
    name = "surgeon-0.3-austen-s0"
    return RunInfo(run_id("ab" * 32), name, "sweep", "trial", ("surgeon", "austen"), config, folder)


def use(tracker) -> None:
    for shot in (1, 2):
        tracker.log({"event": "shot", "shot": shot, "target": 0.05 * shot, "achieved": 0.049 * shot})
    for block in (0, 1):
        for stream in ("calibration", "held_out/kjv"):
            tracker.log({"event": "block", "block": block, "stream": stream, "error": 0.1 * (block + 1)})
    tracker.table("sites", [{"site": "a.q_proj", "removed": 3}, {"site": "a.k_proj", "removed": 4}])
    tracker.summary({"ppl/kjv": 31.5, "delta/ppl/kjv": 0.2, "digest": "ff", "nothing": None})
    tracker.finish(ok=True)


def files_with_key(folder: Path, key: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_online_config_history_summary_tags_and_tables_arrive(loopback, wandb_env: Path):
    tracker = open_tracker(CONFIG, info(wandb_env))
    assert isinstance(tracker, WandbTracker)
    assert tracker.mode == "online"
    use(tracker)
    use(tracker)  # after the end: nothing happens
    assert loopback.unknown == []
    run, asked = loopback.run, loopback.run.variables
    assert (run.name, asked["displayName"]) == ("ab" * 8, "surgeon-0.3-austen-s0")
    assert (asked["groupName"], asked["jobType"], asked["project"]) == ("sweep", "trial", "prunelab")
    assert run.tags == ["surgeon", "austen", "lab"]
    assert run.config["method"] == "surgeon"
    assert run.config["model_name"] == "llama"
    assert run.config["config"] == {"a": {"b": 1}}
    shots = {row["shot"]: row["shot/achieved"] for row in run.history if "shot" in row}
    assert shots == {1: 0.049, 2: 0.098}
    errors = {
        row["block"]: row["block/error/held_out/kjv"]
        for row in run.history
        if "block/error/held_out/kjv" in row
    }
    assert errors == {0: 0.1, 1: 0.2}
    assert run.summary["ppl/kjv"] == 31.5
    assert run.summary["digest"] == "ff"
    assert run.summary["table/sites"]["nrows"] == 2
    assert "plot/block_table" in run.summary
    assert "CommitArtifact" in loopback.operations
    assert (run.complete, run.exitcode) == (True, 0)
    assert files_with_key(wandb_env, os.environ["WANDB_API_KEY"]) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert os.environ["WANDB_DATA_DIR"] == str(wandb_env.parent / "home")


def test_offline_without_a_key_loses_nothing(wandb_env: Path, read_wandb):
    start = time.monotonic()
    tracker = open_tracker(CONFIG, info(wandb_env))
    assert isinstance(tracker, WandbTracker)
    assert tracker.mode == "offline"
    assert time.monotonic() - start < 6  # the decision itself is bounded in wandb/test_probe
    use(tracker)
    (path,) = wandb_env.rglob("*.wandb")
    records = read_wandb(path)
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group, run.job_type) == ("ab" * 8, "sweep", "trial")
    assert list(run.tags) == ["surgeon", "austen", "lab"]
    history = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["shot/target"] for row in history if "shot" in row] == [0.05, 0.1]
    metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    assert {m.glob_name: m.step_metric for m in metrics if m.glob_name} == {
        "shot/*": "shot",
        "block/*": "block",
    }
    outside = [path for path in (wandb_env.parent / "home").rglob("*") if path.is_file()]
    assert outside == []


def test_two_trials_in_one_process(wandb_env: Path):
    runs = [replace(info(wandb_env / name), id=run_id(name * 8)) for name in ("one", "two")]
    trackers = [open_tracker(CONFIG, run) for run in runs]
    for tracker in reversed(trackers):
        use(tracker)
    assert len(list(wandb_env.rglob("*.wandb"))) == 2


def test_failing_run_becomes_silent_after_one_line(wandb_env: Path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    tracker = open_tracker(CONFIG | {"mode": "offline"}, info(wandb_env))
    assert isinstance(tracker, WandbTracker)

    class Broken:
        def __getattr__(self, name):
            raise RuntimeError(f"disk\nfull {'k' * 40}")

    tracker._run = Broken()
    with caplog.at_level(logging.WARNING):
        use(tracker)
    said = [record.message for record in caplog.records if record.name.startswith("prunelab")]
    assert said == ["W&B stops mirroring: RuntimeError: disk full ***"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_unusable_folder_is_a_null_tracker(wandb_env: Path, caplog):
    wandb_env.write_text("a file where the folder should be")
    assert isinstance(open_tracker(CONFIG, info(wandb_env)), NullTracker)
    assert "W&B is left out of surgeon-0.3-austen-s0" in caplog.text


def test_none_disabled_and_unknown(wandb_env: Path):
    use(open_tracker({"name": "none"}, info(wandb_env)))
    assert isinstance(open_tracker(CONFIG | {"mode": "disabled"}, info(wandb_env)), NullTracker)
    with pytest.raises(ConfigError, match=r"tracking\.name='wandbb'.*Did you mean 'wandb'"):
        open_tracker({"name": "wandbb"}, info(wandb_env))


TRIAL = """
import time
from pathlib import Path
from prunelab.tracking.base import RunInfo
from prunelab.tracking.wandb.mirror import open_tracker

tracker = open_tracker({"name": "wandb"}, RunInfo("c" * 16, "n", "g", "trial", (), {}, Path(FOLDER)))
tracker.log({"event": "shot", "shot": 1, "achieved": 0.5})
print("ready", flush=True)
time.sleep(60)
"""


def test_sigterm_marks_preempting_and_leaves_through_atexit(loopback, wandb_env: Path, read_wandb):
    code = "import atexit; atexit.register(print, 'atexit ran', flush=True)\n" + textwrap.dedent(TRIAL)
    command = [sys.executable, "-c", code.replace("FOLDER", repr(str(wandb_env)))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (128 + signal.SIGTERM, "atexit ran\n")
    (path,) = wandb_env.rglob("*.wandb")
    kinds = [record.WhichOneof("record_type") for record in read_wandb(path)]
    assert "preempting" in kinds
    assert [row["shot/achieved"] for row in loopback.run.history if "shot" in row] == [0.5]
    assert loopback.run.preempting
    assert loopback.unknown == []
