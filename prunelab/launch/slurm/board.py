"""Every job of a study and what became of it: the store first, then squeue, then sacct, then the job's own notes."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prunelab.launch.slurm import scheduler
from prunelab.launch.slurm.files import Attempt, Files
from prunelab.launch.slurm.scheduler import Row, Rows
from prunelab.launch.worker import failure_path, log_path
from prunelab.plan.kind import kind_of
from prunelab.plan.study import Plan

State = Literal["done", "running", "pending", "failed", "skipped", "unknown"]
_TAIL = 4000
_MEMORY = (
    "oom-kill",
    "oom_kill",
    "Out Of Memory",
    "exceeded memory limit",
    "Exceeded job memory",
    "being killed",
    "MemoryError",
)


@dataclass(frozen=True)
class JobView:
    """One job's last attempt: its state, its row in SLURM if there is one, its own note, why it failed."""

    attempt: Attempt
    state: State
    id: str
    row: Row | None
    task: Mapping[str, Any]
    reason: str = ""

    @property
    def live(self) -> bool:
        """True if it runs or will run."""
        return self.state in ("running", "pending")

    @property
    def starts(self) -> int:
        """How often its last submission was started."""
        return len(self.task.get("starts", ()))

    @property
    def node(self) -> str:
        """Where it runs or ran last."""
        starts = self.task.get("starts") or [{}]
        return starts[-1].get("node", "") or (self.row.node if self.row else "")

    @property
    def seconds(self) -> float | None:
        """Seconds since, or of, its last start; None if it never started."""
        starts = self.task.get("starts")
        if not starts:
            return None
        over = self.task.get("ended", 0) if self.task.get("state") != "running" or not self.live else 0
        return (
            max(over or (time.time() if self.live else starts[-1]["time"]), starts[-1]["time"])
            - starts[-1]["time"]
        )


def find_rows(files: Files, study: str, attempts: Collection[Attempt]) -> Rows:
    """Ask squeue once, and sacct for what it lacks; note the ids of submissions whose driver died before it could.

    Raises LaunchError if squeue gives no answer.
    """
    rows = scheduler.queued()
    lacking = [attempt for attempt in attempts if (attempt.uid, attempt.index) not in rows]
    ids = {attempt.uid: files.id_of(attempt.uid) for attempt in lacking}
    if ids:
        known = [job for job in ids.values() if job]
        names = [f"{study}-{uid}" for uid, job in ids.items() if not job]
        rows = scheduler.accounted(known, names) | rows
    for attempt in attempts:
        row = rows.get((attempt.uid, attempt.index))
        if row is not None and not files.id_of(attempt.uid):
            files.set_id(attempt.uid, row.id.partition("_")[0])
    return rows


def read_board(plan: Plan, files: Files, done: Collection[str], *, ask: bool = True) -> dict[str, JobView]:
    """Return the state of every job ever submitted for a study, by name; ``ask=False`` leaves SLURM alone."""
    attempts = files.latest()
    open_ones = [a for a in attempts.values() if not set(a.stages) <= set(done)]
    rows = find_rows(files, plan.study, open_ones) if ask and open_ones else {}
    views: dict[str, JobView] = {}
    for name, attempt in attempts.items():
        row, task = rows.get((attempt.uid, attempt.index)), files.task(attempt)
        job = files.id_of(attempt.uid)
        state: State
        if _is_over(attempt, plan, done, task):
            state = "done"
        elif row is not None and row.live:
            state = "pending" if row.state in ("PENDING", "REQUEUED", "CONFIGURING") else "running"
        else:
            state = "failed" if ask else "unknown"
        views[name] = JobView(attempt, state, f"{job}_{attempt.index}" if job else "", row, task)
    return {name: _explained(view, views, plan, files) for name, view in views.items()}


def _is_over(attempt: Attempt, plan: Plan, done: Collection[str], task: Mapping[str, Any]) -> bool:
    """Say whether a job is done: all its stages are, or it says so and the store lacks none of them.

    A tracker that could not be told is no failure of the job.
    """
    left = [key for key in attempt.stages if key not in done]
    stored = [key for key in left if key not in plan.stages or kind_of(plan.stages[key].kind).home == "store"]
    return not left or (not stored and task.get("state") == "done")


def _explained(view: JobView, views: Mapping[str, JobView], plan: Plan, files: Files) -> JobView:
    if view.state == "pending" and view.row is not None:
        return JobView(**{**view.__dict__, "reason": "" if view.row.reason == "None" else view.row.reason})
    if view.state != "failed":
        return view
    culprit = _culprit(view, views)
    if culprit:
        return JobView(**{**view.__dict__, "state": "skipped", "reason": f"dependency: {culprit} failed"})
    return JobView(**{**view.__dict__, "reason": why(view, plan, files)})


def _culprit(view: JobView, views: Mapping[str, JobView]) -> str:
    """Return the job because of which this one never started, or an empty string."""
    if view.starts:
        return ""
    for name in view.attempt.after:
        parent = views.get(name)
        if parent is not None and parent.state == "failed" and parent.attempt.time <= view.attempt.time:
            return _culprit(parent, views) or name
    return ""


def why(view: JobView, plan: Plan, files: Files) -> str:
    """Say why a job that is over left no result: an exception, memory, time, the node, somebody's scancel."""
    attempt, need = view.attempt, view.attempt.need
    state = view.row.state if view.row else ""
    for key in attempt.stages:
        note = _failure(plan, key)
        if note and note.get("time", 0) >= attempt.time:
            return str(note["reason"])
    if state == "TIMEOUT":
        return f"time limit of {need['time_min']} min, and no shot ended after the warning; prunelab retry --time MINUTES"
    words = last_words(view, plan, files)
    if state == "OUT_OF_MEMORY" or any(word in words for word in _MEMORY):
        return (
            f"out of memory: it had {need['mem_gib']:g} GiB; prunelab retry --mem {_more(need['mem_gib'])}G"
        )
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return f"node failure ({view.node or 'node unknown'})"
    if state == "CANCELLED":
        return "cancelled by scancel" if view.starts else "cancelled before it started"
    if state in ("PREEMPTED", "DEADLINE"):
        return f"{state.lower()}, and not queued again"
    if view.task.get("reason"):
        return str(view.task["reason"])
    if (
        (view.row is not None and view.row.exit.endswith(":9"))
        or "Killed" in words
        or "signal 9" in words.lower()
    ):
        return f"killed by SIGKILL: more memory than {need['mem_gib']:g} GiB, or somebody's kill; prunelab retry --mem"
    if state:
        return (
            f"{state.lower()} ({view.row.exit if view.row and view.row.exit else 'no result'}); see its log"
        )
    if not view.id:
        return "never submitted: the driver died before sbatch"
    return "gone: SLURM has forgotten it (no accounting?) and it left no result; killed, or its node failed"


def last_words(view: JobView, plan: Plan, files: Files) -> str:
    """Return the end of what SLURM and the job wrote."""
    texts = []
    for path in (*files.outputs(view.attempt), log_path(plan, view.attempt.job)):
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                texts.append(file.read().decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(texts)


def last_line(view: JobView, plan: Plan, files: Files) -> str:
    """Return the last line of a job's log that says something."""
    lines = [line.strip() for line in last_words(view, plan, files).splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _failure(plan: Plan, key: str) -> dict[str, Any]:
    try:
        return json.loads(failure_path(plan, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _more(gib: float) -> int:
    return max(4, round(2 * gib))
