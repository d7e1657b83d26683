"""Small studies for the tests of tracking, real and written down, and all that a server holds of them as plain data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from by_conf import composer

from prunelab.launch.command.study import plan_study
from prunelab.plan.stage import Stage
from prunelab.plan.study import Plan, load_plan, save_plan
from prunelab.store.artefact import begin, commit
from prunelab.store.layout import METRICS, OUTPUTS
from prunelab.store.record import Record
from prunelab.tracking.jsonl import JsonlWriter

ROOT = Path(__file__).resolve().parents[3]
# two trials that share a prune stage; one of them repairs it
SWEEP = [
    "study=lab", "method=magnitude", "sparsity=unstructured", "sparsity.ratio=0.3", "reconstruction=none,layer",
    "calibration.n_samples=4", "calibration.seq_len=32", "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]",
    "evaluation.seq_len=32", "evaluation.max_samples=4", "evaluation.error_samples=2", "runtime.workers=1",
    "hydra.launcher.report=false", "-m",
]  # fmt: skip
_CLOCK = ("_timestamp", "_runtime", "_wandb", "_step")
_RANDOM = ("artifact_path", "_latest_artifact_path", "path", "local_path", "birthArtifactID")


def prunelab(
    home: Path, *words: str, module: str = "prunelab", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in ``home``."""
    home.mkdir(exist_ok=True, parents=True)
    command = [sys.executable, "-m", module, *words]
    environment = {**child_environment(), "PRUNELAB_HOME": str(home), **env}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600)


def child_environment() -> dict[str, str]:
    """This process's variables without the SDK's own: a child shall start a service of its own."""
    variables = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return variables | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write_finished(home: Path) -> None:
    """Plan the sweep and write down what its stages would have left, without running them."""
    given = [word for word in SWEEP if "=" in word and not word.startswith(("hydra.", "reconstruction="))]
    jobs = [[f"paths.root={home}", *given, f"reconstruction={repair}"] for repair in ("none", "layer")]
    plan = plan_study(composer(), jobs, ["prunelab"])
    save_plan(plan)
    for stage in plan.stages.values():
        _write_stage(plan, stage)


def _write_stage(plan: Plan, stage: Stage) -> None:
    folder = plan.store / stage.folder
    work = begin(folder, {"key": stage.key})
    rows: list[dict[str, Any]] = [{"event": stage.kind, "loss": 0.5, "kind": stage.kind}]
    if stage.kind == "evaluate":
        rows = [
            {"event": "block", "block": b, "stream": s, "error": 0.1 * (b + 1)}
            for b in (0, 1)
            for s in ("in", "out")
        ]
    if stage.kind in ("prune", "reconstruct"):
        rows = [{"event": "pruned", "block": block, "achieved": 0.3 + block / 100} for block in (0, 1)]
    with JsonlWriter(folder / METRICS) as writer:
        for row in rows:
            writer.write(row)
    if stage.kind in ("prune", "reconstruct", "calibrate"):
        (work / OUTPUTS / "state.safetensors").write_bytes(stage.key.encode() * 50)
    tables = {"sites": [{"site": "a.q_proj", "removed": 3}]} if stage.kind == "prune" else {}
    metrics = {f"ppl/{stage.kind}": 31.5, "digest": "ff"}
    commit(
        folder,
        Record(
            stage.kind, stage.key, stage.slug, stage.identity, stage.inputs, metrics, tables, {"seconds": 1.0}
        ),
    )


QUICK = """_target_: prunelab.reconstruction.exact.LeastSquares
name: layer
revision: 1
masks: before
target: local
solver: gradient
damping: 1.0e-4
tolerance: 1.0e-4
iterations: 2
learning_rate: 1.0e-3
"""  # two steps are enough to have something to track


def sweep(home: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    (home / "conf" / "reconstruction").mkdir(parents=True)
    (home / "conf" / "reconstruction" / "quick.yaml").write_text(QUICK)
    given = [word.replace("none,layer", "none,quick") for word in SWEEP]
    done = prunelab(home, "--config-dir", str(home / "conf"), *given, *words, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def sync(home: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return prunelab(home, "sync", "lab", *words, module="prunelab.cli", **env)


def tracked(finished: Path, home: Path, **tracking: Any) -> Plan:
    """The plan of a finished study as if it had been tracked: its own study folder, the store of the other."""
    folder = home / "studies" / "lab"
    folder.mkdir(parents=True)
    plan = json.loads((finished / "studies" / "lab" / "plan.json").read_text())
    plan["store"] = str(finished / "store")
    for trial in plan["trials"]:
        trial["config"]["tracking"] |= {"name": "wandb", "finish_timeout": 60, **tracking}
    (folder / "plan.json").write_text(json.dumps(plan))
    return load_plan(folder)


def fresh_store(plan: Plan, home: Path) -> Plan:
    """The same plan with a store of its own, which a test may damage."""
    shutil.copytree(plan.store, home / "store")
    path = plan.folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"store": str(home / "store")}))
    return load_plan(plan.folder)


def plain(value: Any, home: Path) -> Any:
    """A value without clocks, costs, random names of files and the place of the store."""
    if isinstance(value, dict):
        return {
            key: plain(item, home)
            for key, item in sorted(value.items())
            if key not in (*_CLOCK, *_RANDOM) and not key.startswith("cost/")
        }
    if isinstance(value, list):
        return [plain(item, home) for item in value]
    return value.replace(str(home), "HOME") if isinstance(value, str) else value


def held(server: Any, home: Path = Path("/nowhere")) -> dict[str, Any]:
    """All a server holds of each run; ``home`` is where the store is, if it is to be left out of the answer."""

    def artefact(id: str) -> dict[str, Any]:
        found = server.artefacts[id]
        metadata = json.loads(found.created.get("metadata") or "{}")
        files = server.entries(found)
        if found.type == "dense":  # the record it refers to holds seconds
            metadata, files = {**metadata, "sha256": 0, "bytes": 0}, list(files)
        return plain(
            {
                "name": found.name,
                "type": found.type,
                "metadata": metadata,
                "state": found.state,
                "files": files,
            },
            home,
        )

    return {name: _run(run, artefact, home) for name, run in server.runs.items()}


def _run(run: Any, artefact: Any, home: Path) -> dict[str, Any]:
    asked, internal = run.variables, json.loads(run.variables["config"])["_wandb"]["value"]
    return {
        "name": asked["displayName"], "group": asked["groupName"], "job": asked["jobType"], "tags": run.tags,
        "config": plain(run.config, home), "history": plain(run.history, home), "summary": plain(run.summary, home),
        "axes": sorted(json.dumps(metric, sort_keys=True) for metric in internal["m"]),
        "plots": plain(internal.get("visualize"), home), "end": (run.complete, run.exitcode),
        "made": sorted((artefact(id) for id in run.made), key=str),
        "used": sorted((artefact(id) for id in run.used), key=str), "alerts": run.alerts,
    }  # fmt: skip
