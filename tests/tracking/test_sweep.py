"""A real sweep through ``python -m prunelab``: what the server holds online equals what offline and sync give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "calibration.n_samples=4", "calibration.seq_len=32", "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]",
    "evaluation.seq_len=32", "evaluation.max_samples=4", "evaluation.error_samples=2", "runtime.workers=1",
]  # fmt: skip
SWEEP = ["+exp=surgeon_sweep", "method=magnitude", "sparsity.ratio=0.1,0.2", "tracking=wandb", "tracking.tags=[lab]", "-m"]
CLOCK = ("_timestamp", "_runtime", "_wandb", "_step")


def run(home: Path, *words: str, module: str = "prunelab", **env: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-m", module, *words]
    environment = {**os.environ, "PRUNELAB_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    environment.pop("WANDB_DIR", None)
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=240)


def sweep(home: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run(home, *SMALL, *SWEEP, *words, **env)


def sync(home: Path, name: str = "surgeon_sweep", **env: str) -> subprocess.CompletedProcess[str]:
    return run(home, "sync", name, module="prunelab.cli", **env)


def plain(value: Any, home: Path) -> Any:
    """A value without clocks, costs, random names of files and the place of the store."""
    if isinstance(value, dict):
        dropped = (*CLOCK, "artifact_path", "_latest_artifact_path", "path", "local_path", "birthArtifactID")
        return {k: plain(v, home) for k, v in sorted(value.items()) if k not in dropped and not k.startswith("cost/")}
    if isinstance(value, list):
        return [plain(item, home) for item in value]
    return value.replace(str(home), "HOME") if isinstance(value, str) else value


def held(loopback, home: Path) -> dict[str, Any]:
    """All a server holds of each run, in plain data."""
    served, runs = loopback.held, {}

    def artefact(id: str) -> dict[str, Any]:
        found = served.artefacts[id]
        metadata = json.loads(found.created.get("metadata") or "{}")
        if found.type == "dense":  # the record it refers to holds seconds
            metadata.pop("sha256"), metadata.pop("bytes")
            return plain({"name": found.name, "type": found.type, "metadata": metadata}, home)
        return plain({"name": found.name, "type": found.type, "metadata": metadata, "state": found.state,
                      "files": served.entries(found)}, home)  # fmt: skip

    for name, one in served.runs.items():
        asked = one.variables
        raw = json.loads(asked["config"])
        runs[name] = {
            "name": asked["displayName"], "group": asked["groupName"], "job": asked["jobType"], "tags": one.tags,
            "config": plain(one.config, home), "history": plain(one.history, home), "summary": plain(one.summary, home),
            "axes": sorted(json.dumps(m, sort_keys=True) for m in raw["_wandb"]["value"]["m"]),
            "plots": plain(raw["_wandb"]["value"].get("visualize"), home), "end": (one.complete, one.exitcode),
            "made": sorted((artefact(id) for id in one.made), key=str),
            "used": sorted((artefact(id) for id in one.used), key=str), "alerts": one.alerts,
        }  # fmt: skip
    return runs


def test_offline_and_sync_is_online(loopback, tmp_path: Path):
    online = sweep(tmp_path / "on")
    assert online.returncode == 0, online.stdout + online.stderr
    first = held(loopback, tmp_path / "on")
    print(online.stdout)
    loopback.forget()
    offline = sweep(tmp_path / "off", "tracking.mode=offline")
    assert offline.returncode == 0, offline.stdout + offline.stderr
    assert "prunelab sync" in offline.stdout
    assert loopback.held.runs == {}
    sent = sync(tmp_path / "off")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "2 sent" in sent.stdout
    second = held(loopback, tmp_path / "off")
    assert second == first
    assert loopback.unknown == []
