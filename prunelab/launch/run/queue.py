"""Which job may start now: the graph of jobs as they finish, fail or can no longer run."""

from __future__ import annotations

from collections.abc import Sequence

from prunelab.launch.run.base import Event
from prunelab.plan.graph import Job


class Queue:
    """Jobs in plan order. A job starts when those in ``after`` succeeded and those in ``after_any`` are over."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = {job.name: job for job in jobs}
        self._running: set[str] = set()
        self._ok: dict[str, bool] = {}

    def take(self) -> Job | None:
        """Return the first job that may start, or None if there is none now."""
        for name, job in self._waiting.items():
            if all(self._ok.get(n, n not in self._known) for n in job.after) and not any(
                n in self._waiting or n in self._running for n in job.after_any
            ):
                del self._waiting[name]
                self._running.add(name)
                return job
        return None

    @property
    def _known(self) -> set[str]:
        return {*self._waiting, *self._running, *self._ok}

    def over(self, name: str, ok: bool) -> list[Event]:
        """Note that a job ended; return a ``skipped`` event for every job that can no longer run."""
        self._running.discard(name)
        self._ok[name] = ok
        return [] if ok else self._skip(name, name)

    def _skip(self, name: str, root: str) -> list[Event]:
        events = []
        for job in list(self._waiting.values()):
            if name in job.after and job.name in self._waiting:
                del self._waiting[job.name]
                self._ok[job.name] = False
                events += [
                    Event("skipped", job.name, {"reason": f"{root} failed"}),
                    *self._skip(job.name, root),
                ]
        return events

    @property
    def waiting(self) -> list[str]:
        """Names of the jobs that have not started."""
        return list(self._waiting)

    @property
    def finished(self) -> bool:
        """True when nothing waits or runs."""
        return not self._waiting and not self._running
