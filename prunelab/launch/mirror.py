"""A trial's numbers on their way to its tracker: finished stages from their records, running ones live."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from prunelab.plan.study import Plan, Trial
from prunelab.store.layout import METRICS, is_done, locate
from prunelab.store.record import read_record
from prunelab.tracking.base import RunInfo, Tracker, run_id
from prunelab.tracking.jsonl import read_jsonl
from prunelab.tracking.wandb_mirror import open_tracker

_ROLES = ("dense", "prune", "reconstruct", "evaluate")  # calibrate has no curve to show


class Mirror:
    """Opens the trial's run, replays what is in the store already, passes on what comes."""

    def __init__(self, plan: Plan, trial: Trial, skip: Collection[str]) -> None:
        self._plan, self._trial = plan, trial
        self._tracker: Tracker = open_tracker(trial.config["tracking"], _info(plan, trial))
        self._summary: dict[str, Any] = {}
        for role in _ROLES:
            key = trial.stages.get(role)
            if key and key not in skip and is_done(self._folder(key)):
                self._replay(key)

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass on a row of a running stage."""
        self._tracker.log(row)

    def stage_done(self, key: str) -> None:
        """Take final numbers and tables from a finished stage's record."""
        role = next((role for role, k in self._trial.stages.items() if k == key), "")
        if role not in _ROLES:
            return
        record = read_record(self._folder(key))
        # the dense model's perplexity is not this trial's
        prefix = "dense/" if record.kind == "dense" else ""
        self._summary |= {prefix + name: value for name, value in record.metrics.items()}
        self._summary |= {
            f"cost/{record.kind}_s": record.cost.get("seconds"),
            f"cost/{record.kind}_peak_gib": record.cost.get("peak_gib"),
        }
        for name, rows in record.tables.items():
            self._tracker.table(name, rows)

    def finish(self, ok: bool) -> None:
        """Write the final numbers and end the run."""
        self._tracker.summary({name: value for name, value in self._summary.items() if value is not None})
        self._tracker.finish(ok)
        if ok:
            mark = mirrored_mark(self._plan, self._trial)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()

    def _replay(self, key: str) -> None:
        for row in read_jsonl(self._folder(key) / METRICS):
            self._tracker.log(row)
        self.stage_done(key)

    def _folder(self, key: str) -> Path:
        stage = self._plan.stages[key]
        return locate(self._plan.store, stage.kind, key, stage.folder)


def mirrored_mark(plan: Plan, trial: Trial) -> Path:
    """Return the empty file that says a trial's run was ended well."""
    return plan.folder / "tracking" / f"{run_id(trial.key)}.{trial.config['tracking']['name']}"


def _info(plan: Plan, trial: Trial) -> RunInfo:
    config = trial.config
    flat = {
        "method": config["method"]["name"], "ratio": config["sparsity"]["ratio"], "pattern": config["sparsity"]["pattern"],
        "calibration": config["calibration"]["name"], "model": config["model"]["name"], "seed": config["seed"],
        "allocation": config["allocation"]["name"], "reconstruction": config["reconstruction"]["name"],
        "trial": {key: value for key, value in config.items() if key not in ("paths", "tracking", "runtime")},
        "stages": dict(trial.stages),
    }  # fmt: skip
    tags = (flat["method"], flat["model"], flat["calibration"], *config["tracking"]["tags"])
    folder = plan.folder / "tracking"
    return RunInfo(run_id(trial.key), trial.name, plan.study, "trial", tags, flat, folder)
