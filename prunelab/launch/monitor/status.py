"""``prunelab status``: the store, the locks and the notes of failures say what became of a study; a cluster is asked once."""

from __future__ import annotations

from rich.console import Console

from prunelab.launch.monitor.job_table import JobView, State, explained, lines, table
from prunelab.launch.run.failure import read_failure
from prunelab.launch.run.log import log_path
from prunelab.launch.run.runner import finished
from prunelab.launch.slurm import command
from prunelab.launch.track.loss import show_losses
from prunelab.lock import is_locked
from prunelab.plan.graph import jobs
from prunelab.plan.study import Plan
from prunelab.store.layout import index, lock_path


def show_status(plan: Plan, console: Console, *, whole: bool) -> int:
    """Print a line per trial; return 1 if anything failed."""
    done, note = finished(plan), ""
    if command.is_submitted(plan.folder):
        views, note = command.views(plan, done)
    else:
        views = local_views(plan, done)
    found = lines(plan, views, done)
    console.print(table(plan, found, whole=whole, note=note))
    show_losses(plan, console)
    return 1 if any(line.state in ("failed", "skipped") for line in found) else 0


def local_views(plan: Plan, done: set[str]) -> dict[str, JobView]:
    """Return the jobs of this machine that are not done: one listing of the store, one probe of a lock per open stage."""
    folders = index(plan.store) if plan.store.is_dir() else {}
    failed = {path.stem for path in (plan.folder / "failures").glob("*.json")}
    views: dict[str, JobView] = {}
    for job in jobs(plan, done):
        state: State = "waiting"
        log, after = log_path(plan, job.name), (*job.after, *job.after_any)
        if any(key[:16] in folders and is_locked(lock_path(plan.store, key)) for key in job.stages):
            state = "running"
        elif failed.intersection(key[:16] for key in job.stages):
            state = "failed"
        started = state != "waiting"
        logs = (log,) if started and log.is_file() else ()
        views[job.name] = JobView(job.name, job.stages, after, state, logs=logs, starts=int(started))
    return explained(views, lambda view: _why(plan, view))


def _why(plan: Plan, view: JobView) -> str:
    notes = (read_failure(plan, key) for key in view.stages)
    return next((note.reason for note in notes if note is not None), "")
