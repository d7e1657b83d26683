"""The SLURM launcher: plan and submit under the study's lock, then follow, or leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from prunelab.files import make_folder
from prunelab.launch.monitor.job_table import JobView
from prunelab.launch.run.base import Event, Launcher, Order
from prunelab.launch.run.runner import finished
from prunelab.launch.slurm.estimate import need
from prunelab.launch.slurm.files import Attempt, Files
from prunelab.launch.slurm.follow import Follower
from prunelab.launch.slurm.job_list import read_jobs
from prunelab.launch.slurm.settings import Settings
from prunelab.launch.slurm.submit import groups, submit
from prunelab.lock import locked
from prunelab.plan.graph import Job, jobs
from prunelab.plan.study import Plan

_LOCK_S = 600


class Slurm(Launcher):
    """Submits what is neither in the store nor on the cluster; follows all of it if ``wait``."""

    def __init__(self, settings: Settings, *, wait: bool, new: bool = True) -> None:
        self._settings, self._new = settings, new
        self.detached = not wait
        self.stopped = "Stopped looking. The jobs go on: prunelab attach, status, cancel."

    def run(self, order: Order, listen: Callable[[Event], None]) -> None:
        """Submit under the study's lock, so that of two drivers the second finds the first one's jobs; then follow."""
        plan, files = order.plan, Files(order.plan.folder)
        make_folder(files.slurm)
        with locked(files.slurm / "lock", f"submitting {plan.study}", timeout=_LOCK_S):
            done = finished(plan)
            todo = jobs(plan, done)
            cover = covered(todo, read_jobs(plan, files, done), files.latest(), done)
            missing = [job for job in todo if job.name not in cover]
            if self._new and missing:
                self._settings.save(files.slurm)
                needs = {job.name: need(plan, job, self._settings) for job in missing}
                known = {
                    name: ":".join(f"{files.id_of(a.uid)}_{a.index}" for a in on)
                    for name, on in cover.items()
                }
                submit(plan.study, files, order.plan_file, missing, needs, self._settings, known)
            there = len(cover)
        if self._new:
            listen(Event("submitted", "", {"jobs": len(missing), "there": there}))
        if self.detached:
            return
        latest = files.latest()
        mine = {
            job.name: cover.get(job.name) or [latest[job.name]]
            for job in todo
            if job.name in cover or job.name in latest
        }
        followed = [job for job in order.jobs if job.name in mine] if not self._new else list(order.jobs)
        Follower(plan, files, followed, mine, self._settings.poll_s).run(listen)

    def describe(self, plan: Plan, todo: Sequence[Job]) -> Any:
        """Return a table of the arrays that would be submitted and what each job of them asks for."""
        needs = {job.name: need(plan, job, self._settings) for job in todo}
        where = self._settings.partition or "default"
        table = Table("jobs", "first", "asks for", "waits for", title=f"SLURM: partition {where}")
        for asked, after, after_any, members in groups(todo, needs, {}):
            parents = ", ".join((*after, *after_any))
            table.add_row(str(len(members)), members[0].name, str(asked), parents)
        return table


def covered(
    todo: Sequence[Job], views: Mapping[str, JobView], attempts: Mapping[str, Attempt], done: set[str]
) -> dict[str, list[Attempt]]:
    """Return the jobs that live attempts already work on, whatever name an earlier plan gave these."""
    busy: dict[str, Attempt] = {}
    for view in views.values():
        if view.live:
            busy |= dict.fromkeys(view.stages, attempts[view.name])
    found: dict[str, list[Attempt]] = {}
    for job in todo:
        open_keys = [key for key in job.stages if key not in done]
        if open_keys and all(key in busy for key in open_keys):
            found[job.name] = list(
                {busy[key].uid + str(busy[key].index): busy[key] for key in open_keys}.values()
            )
    return found
