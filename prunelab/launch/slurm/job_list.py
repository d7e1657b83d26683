"""Every job of a study on the cluster: the store first, then squeue, then sacct, then the job's own notes."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from prunelab.launch.monitor.job_table import JobView, State, explained
from prunelab.launch.run.failure import read_failure
from prunelab.launch.run.log import last_words, log_path
from prunelab.launch.slurm import scheduler
from prunelab.launch.slurm.files import Attempt, Files
from prunelab.launch.slurm.scheduler import Row, Rows
from prunelab.plan.kind import kind_of
from prunelab.plan.study import Plan

_MEMORY = (
    "oom-kill", "oom_kill", "Out Of Memory", "exceeded memory limit", "Exceeded job memory", "being killed", "MemoryError",
)  # fmt: skip


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


def read_jobs(plan: Plan, files: Files, done: Collection[str], *, ask: bool = True) -> dict[str, JobView]:
    """Return the state of every job ever submitted for a study, by name; ``ask=False`` leaves SLURM alone."""
    attempts = files.latest()
    open_ones = [a for a in attempts.values() if not set(a.stages) <= set(done)]
    rows = find_rows(files, plan.study, open_ones) if ask and open_ones else {}
    asked = {name: rows.get((attempt.uid, attempt.index)) for name, attempt in attempts.items()}
    tasks = {name: files.task(attempt) for name, attempt in attempts.items()}
    views = {}
    for name, attempt in attempts.items():
        row, task = asked[name], tasks[name]
        state: State = "done"
        if not _is_over(attempt, plan, done, task):
            state = _state_of(row) if row is not None and row.live else "failed" if ask else "unknown"
        views[name] = _view(plan, files, attempt, state, row, task)
    return explained(
        views, lambda view: why(plan, view, attempts[view.name], asked[view.name], tasks[view.name])
    )


def _state_of(row: Row) -> State:
    return "pending" if row.state in ("PENDING", "REQUEUED", "CONFIGURING") else "running"


def _view(
    plan: Plan, files: Files, attempt: Attempt, state: State, row: Row | None, task: Mapping[str, Any]
) -> JobView:
    job, starts = files.id_of(attempt.uid), task.get("starts") or []
    live = state in ("running", "pending")
    return JobView(
        attempt.job, attempt.stages, attempt.after, state,
        reason=row.reason if state == "pending" and row and row.reason != "None" else "",
        logs=(*files.outputs(attempt), log_path(plan, attempt.job)) if state in ("running", "failed") else (),
        id=f"{job}_{attempt.index}" if job else "", uid=attempt.uid,
        node=(starts[-1].get("node", "") if starts else "") or (row.node if row else ""),
        time=attempt.time, number=attempt.number, starts=len(starts), seconds=_seconds(task, live),
    )  # fmt: skip


def _seconds(task: Mapping[str, Any], live: bool) -> float | None:
    """Return the seconds since, or of, a task's last start; None if it never started."""
    starts = task.get("starts")
    if not starts:
        return None
    began = starts[-1]["time"]
    ended = task.get("ended", 0) if task.get("state") != "running" or not live else 0
    return max(ended or (time.time() if live else began), began) - began


def _is_over(attempt: Attempt, plan: Plan, done: Collection[str], task: Mapping[str, Any]) -> bool:
    """Say whether a job is done: all its stages are, or it says so and the store lacks none of them.

    A tracker that could not be told is no failure of the job.
    """
    left = [key for key in attempt.stages if key not in done]
    stored = [key for key in left if key not in plan.stages or kind_of(plan.stages[key].kind).home == "store"]
    return not left or (not stored and task.get("state") == "done")


def why(plan: Plan, view: JobView, attempt: Attempt, row: Row | None, task: Mapping[str, Any]) -> str:
    """Say why a job that is over left no result: an exception, memory, time, the node, somebody's scancel."""
    need, state = attempt.need, row.state if row else ""
    for key in attempt.stages:
        note = read_failure(plan, key)
        if note is not None and note.time >= attempt.time:
            return note.reason
    if state == "TIMEOUT":
        return f"time limit of {need['time_min']} min, and no shot ended after the warning; prunelab retry --time MINUTES"
    words = last_words(view.logs)
    if state == "OUT_OF_MEMORY" or any(word in words for word in _MEMORY):
        more = max(4, round(2 * need["mem_gib"]))
        return f"out of memory: it had {need['mem_gib']:g} GiB; prunelab retry --mem {more}G"
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return f"node failure ({view.node or 'node unknown'})"
    if state == "CANCELLED":
        return "cancelled by scancel" if view.starts else "cancelled before it started"
    if state in ("PREEMPTED", "DEADLINE"):
        return f"{state.lower()}, and not queued again"
    if task.get("reason"):
        return str(task["reason"])
    killed = row is not None and row.exit.endswith(":9")
    if killed or "Killed" in words or "signal 9" in words.lower():
        return f"killed by SIGKILL: more memory than {need['mem_gib']:g} GiB, or somebody's kill; prunelab retry --mem"
    if state:
        return f"{state.lower()} ({row.exit if row and row.exit else 'no result'}); see its log"
    if not view.id:
        return "never submitted: the driver died before sbatch"
    return "gone: SLURM has forgotten it (no accounting?) and it left no result; killed, or its node failed"
