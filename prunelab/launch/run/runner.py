"""Run a study: plan on disk, what is missing goes to the launcher, then results, report and a closing table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunelab.config.schema import Runtime
from prunelab.errors import StoreError
from prunelab.launch.run.base import Event, Launcher, Order, Resources
from prunelab.launch.track.mirror import is_told
from prunelab.plan.graph import jobs
from prunelab.plan.kind import TRACK
from prunelab.plan.study import Plan, is_saved, save_plan
from prunelab.store.layout import check_writable, index, is_done


@dataclass
class Outcome:
    """What became of a study: its plan's file; failures by job, with reasons and logs; how many stages ran here."""

    plan_file: Path
    failed: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    skipped: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if no job failed and none was skipped."""
        return not self.failed and not self.skipped


def finished(plan: Plan) -> set[str]:
    """Return the keys of the plan's stages that are done: the store has them, or the trial's tracker was told."""
    folders = index(plan.store) if plan.store.is_dir() else {}
    stored = {key for key in plan.stages if key[:16] in folders and is_done(folders[key[:16]])}
    told = {trial.stages[TRACK] for trial in plan.trials if TRACK in trial.stages and is_told(plan, trial)}
    return stored | told


def run_study(
    plan: Plan, launcher: Launcher, resources: Resources, listen: Callable[[Event], None]
) -> Outcome:
    """Save the plan and run what the store lacks. Raises StoreError, before anything runs, if it cannot be written.

    A study and a store of somebody else that have everything are only read.
    """
    todo = jobs(plan, finished(plan))
    if todo:
        check_writable(plan.store, "paths.store")
    outcome, started = Outcome(_saved(plan, needed=bool(todo))), time.perf_counter()
    order = Order(plan, outcome.plan_file, todo, resources)

    def note(event: Event) -> None:
        if event.what == "failed":
            outcome.failed[event.job] = event.values
        elif event.what == "skipped":
            outcome.skipped[event.job] = event.values
        elif event.what == "stage" and event.values["ran"]:
            kind = event.values["kind"]
            outcome.ran[kind] = outcome.ran.get(kind, 0) + 1
        listen(event)

    if order.jobs:
        launcher.run(order, note)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _saved(plan: Plan, *, needed: bool) -> Path:
    """Save the plan and return its file; where nothing is ``needed``, the same one that is there may be somebody else's."""
    try:
        check_writable(plan.folder, "paths.study")
    except StoreError:
        if needed or not is_saved(plan):
            raise
        return plan.folder / "plan.json"
    return save_plan(plan)


def local_resources(runtime: Runtime) -> Resources:
    """Return workers and threads for this machine: one worker per GPU, else up to four on the cores there are.

    The choice depends on the machine only, never on how much is left to do: the number of threads may change the
    last bits of a sum, and a resumed study has to repeat them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _gpus() if runtime.device in ("auto", "cuda") else 0
    workers = runtime.workers or gpus or min(cores, 4)
    return Resources(workers, runtime.threads or max(1, cores // workers), gpus)


def _gpus() -> int:
    """Count the GPUs this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    driver = Path("/proc/driver/nvidia/gpus")
    return len(list(driver.iterdir())) if driver.is_dir() else 0
