"""A trial's numbers on their way to its tracker: finished stages from their records, running ones live.

Every start tells all of it, in the order of the stages: rows that an earlier start has logged are read back from
metrics.jsonl, so that no start depends on what became of another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from prunelab.config.trial import plain
from prunelab.launch.track.lineage import lineage
from prunelab.metric import COST
from prunelab.plan.kind import kind_of, metric_prefix
from prunelab.plan.study import Plan, Trial
from prunelab.store.layout import METRICS, is_done, locate
from prunelab.store.record import read_record
from prunelab.tracking.base import NullTracker, RunInfo, Tracker, run_id
from prunelab.tracking.jsonl import read_jsonl
from prunelab.tracking.note import read_note
from prunelab.tracking.wandb.mirror import open_tracker
from prunelab.tracking.wandb.probe import is_wanted


class Mirror:
    """Opens the trial's run, tells it what is in the store already, passes on what comes from ``own`` stages."""

    def __init__(
        self, plan: Plan, trial: Trial, own: Collection[str], tracker: Tracker | None = None
    ) -> None:
        self._plan, self._trial = plan, trial
        self._tracker: Tracker = tracker or open_tracker(plain(trial.config.tracking), run_info(plan, trial))
        self._summary: dict[str, Any] = {}
        self._protocols: list[dict[str, Any]] = []
        self._told: set[str] = set()  # stages that need no replay and no live rows any more
        self._live: set[str] = set()
        for key in self._keys():
            if key not in own and is_done(self._folder(key)):
                self.stage_done(key)

    def listener(self, key: str) -> Callable[[Mapping[str, Any]], None]:
        """Return what takes the rows of the running stage ``key``, after those it has on disk already."""
        if key not in self._keys() or key in self._told:  # a damaged input is made again: no news
            return lambda row: None
        if key not in self._live:
            self._live.add(key)
            self._replay(key)
        return self._tracker.log

    def stage_done(self, key: str) -> None:
        """Take final numbers and tables from a finished stage's record, and its rows if they were not live."""
        if key not in self._keys():
            return
        if key not in self._live:
            self._replay(key)
        self._told.add(key)
        record = read_record(self._folder(key), key)
        prefix = metric_prefix(record.kind, self._keys()[key])
        self._summary |= {prefix + name: value for name, value in record.metrics.items()}
        self._summary |= {
            COST.at(f"{record.kind}_s"): record.cost.get("seconds"),
            COST.at(f"{record.kind}_peak_gib"): record.cost.get("peak_gib"),
        }
        self._protocols += [{"number": prefix + name, **how} for name, how in record.protocols.items()]
        for name, rows in record.tables.items():
            self._tracker.table(name, rows)

    def unfinished(self) -> None:
        """Tell the rows of stages that have begun and are not finished."""
        for key in self._keys():
            if key not in self._told:
                self.listener(key)

    def failed(self, reason: str) -> None:
        """Alert people, and end the run as a failed one."""
        self._tracker.alert(f"{self._trial.name} failed", f"{self._plan.study}: {reason}")
        self.finish(False)

    def finish(self, ok: bool) -> None:
        """Write the final numbers and end the run."""
        if ok and not isinstance(self._tracker, NullTracker):
            for item, used in lineage(self._plan, self._trial):
                self._tracker.artefact(item, used=used)
        if self._protocols:
            self._tracker.table("protocols", self._protocols)
        self._tracker.summary({name: value for name, value in self._summary.items() if value is not None})
        self._tracker.finish(ok)

    def _keys(self) -> dict[str, str]:
        """Return the roles of the stages that have something to show, by key."""
        roles = self._trial.stages.items()
        return {key: role for role, key in roles if kind_of(self._plan.stages[key].kind).mirrored}

    def _replay(self, key: str) -> None:
        for row in read_jsonl(self._folder(key) / METRICS):
            self._tracker.log(row)

    def _folder(self, key: str) -> Path:
        stage = self._plan.stages[key]
        return locate(self._plan.store, stage.kind, key, stage.folder)


def tracking_folder(plan: Plan) -> Path:
    """Return where a study's trackers keep their files."""
    return plan.folder / "tracking"


def is_told(plan: Plan, trial: Trial) -> bool:
    """Say whether a tracker has been told all of a finished trial, be it only in files on disk; or if none is wanted."""
    if not is_wanted(trial.config.tracking):
        return True
    note = read_note(tracking_folder(plan), run_id(trial.key))
    return note is not None and note.ended == "ok"


def is_finished(plan: Plan, trial: Trial) -> bool:
    """Say whether the store has all of a trial's stages, whatever its tracker was told."""
    stages = [plan.stages[key] for key in trial.stages.values()]
    stages = [stage for stage in stages if kind_of(stage.kind).home == "store"]
    return all(is_done(locate(plan.store, stage.kind, stage.key, stage.folder)) for stage in stages)


def run_info(plan: Plan, trial: Trial) -> RunInfo:
    """Return what a tracker has to know of a trial before its first number."""
    config = trial.config
    flat = {
        "method": config.method.name, "ratio": config.sparsity.ratio, "pattern": config.sparsity.pattern,
        "calibration": config.calibration.name, "model": config.model.name, "seed": config.seed,
        "allocation": config.allocation.name, "reconstruction": config.reconstruction.name,
        "trial": {key: value for key, value in plain(config).items() if key not in ("paths", "tracking", "runtime")},
        "stages": dict(trial.stages),
    }  # fmt: skip
    tags = (config.method.name, str(config.model.name), config.calibration.name, *config.tracking.tags)
    return RunInfo(run_id(trial.key), trial.name, plan.study, "trial", tags, flat, tracking_folder(plan))
