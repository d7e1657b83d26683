"""What ``prunelab status|attach|cancel|retry`` do for a study on a cluster. Files first, SLURM asked once; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prunelab.errors import LaunchError, nearest
from prunelab.launch.monitor.job_table import JobView
from prunelab.launch.run.drive import drive
from prunelab.launch.run.runner import finished
from prunelab.launch.slurm import scheduler
from prunelab.launch.slurm.files import Files
from prunelab.launch.slurm.job_list import read_jobs
from prunelab.launch.slurm.launcher import Slurm
from prunelab.launch.slurm.settings import Settings
from prunelab.lock import locked
from prunelab.plan.study import Plan


def is_submitted(study: Path) -> bool:
    """Say whether a study was ever sent to a cluster."""
    return (study / "slurm" / "settings.json").is_file()


def views(plan: Plan, done: set[str]) -> tuple[dict[str, JobView], str]:
    """Return a study's jobs, and a note; without an answer from SLURM both say what the files say."""
    files = Files(plan.folder)
    try:
        return read_jobs(plan, files, done), ""
    except LaunchError as error:
        return read_jobs(plan, files, done, ask=False), f"states from files only: {error}"


def attach(plan: Plan, console: Console) -> int:
    """Follow what is on the cluster until it is over, then report; submits nothing."""
    launcher = Slurm(Settings.load(plan.folder / "slurm"), wait=True, new=False)
    return drive(plan, launcher, console, dry_run=False, report=True)


def retry(plan: Plan, console: Console, settings: Settings, *, wait: bool) -> int:
    """Submit what is neither done nor on the cluster, under ``settings``."""
    return drive(plan, Slurm(settings, wait=wait), console, dry_run=False, report=True)


def cancel(plan: Plan, console: Console, names: Sequence[str]) -> int:
    """Cancel a study's jobs, or those of the trials named."""
    files = Files(plan.folder)
    with locked(files.slurm / "lock", f"submitting {plan.study}", timeout=600):
        known = read_jobs(plan, files, finished(plan))
    for name in names:
        if name not in known:
            raise LaunchError(f"{plan.study} has no job {name!r}. {nearest(name, known)}".rstrip())
    live = {name: view.id for name, view in known.items() if view.live and (not names or name in names)}
    scheduler.cancel(live.values())
    console.print(
        f"cancelled {len(live)} jobs" + (f": {', '.join(live)}" if 0 < len(live) <= 10 else ""),
        highlight=False,
    )
    return 0
