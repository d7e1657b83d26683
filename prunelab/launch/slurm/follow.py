"""Follow jobs that run elsewhere: their event files once a second, SLURM's view of them at longer intervals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence

from prunelab.errors import LaunchError
from prunelab.launch.monitor.job_table import JobView
from prunelab.launch.run.base import Event
from prunelab.launch.run.log import log_path
from prunelab.launch.run.runner import finished
from prunelab.launch.slurm.files import Attempt, Files
from prunelab.launch.slurm.job_list import read_jobs
from prunelab.plan.graph import Job
from prunelab.plan.study import Plan

_TICK_S = 1.0
_PATIENCE = 30  # squeue may fail this often in a row: controllers restart
_TWICE = 2  # a job is over when two views say so: a result may reach this machine after SLURM's word


class Follower:
    """Turns what jobs write into events; ``cover`` says which attempts work on which job."""

    def __init__(
        self,
        plan: Plan,
        files: Files,
        jobs: Sequence[Job],
        cover: Mapping[str, Sequence[Attempt]],
        poll_s: float,
    ) -> None:
        self._plan, self._files, self._poll_s = plan, files, poll_s
        self._open = {job.name: job for job in jobs}
        self._cover = cover
        self._read: dict[tuple[str, str], int] = {}
        self._started: set[str] = set()
        self._gone: dict[str, int] = {}

    def run(self, listen: Callable[[Event], None]) -> None:
        """Return when every job is done, failed or can never start."""
        asked, errors = 0.0, 0
        while self._open:
            for name in list(self._open):
                for event in self._news(name):
                    listen(event)
            if time.monotonic() - asked >= self._poll_s:
                try:
                    views = read_jobs(self._plan, self._files, done := finished(self._plan))
                    errors = 0
                except LaunchError as error:
                    errors += 1
                    if errors > _PATIENCE:
                        raise LaunchError(
                            f"{error}. The jobs go on; prunelab attach {self._plan.folder} follows them."
                        ) from None
                    views, done = {}, finished(self._plan)
                for event in self._over(views, done):
                    listen(event)
                asked = time.monotonic()
            if self._open:
                time.sleep(min(_TICK_S, self._poll_s))

    def _news(self, name: str) -> list[Event]:
        events = []
        for attempt in self._cover.get(name, ()):
            path = self._files.events(attempt)
            where = self._read.get((name, str(path)), 0)
            try:
                with path.open("rb") as file:
                    file.seek(where)
                    data = file.read()
            except OSError:
                continue
            whole = data.rfind(b"\n") + 1
            self._read[name, str(path)] = where + whole
            for line in data[:whole].splitlines():
                plain = json.loads(line)
                if plain["what"] == "started" and name not in self._started:
                    self._started.add(name)
                    events.append(Event("started", name, plain["values"]))
                elif plain["what"] in ("progress", "stage"):
                    events.append(Event(plain["what"], name, plain["values"]))
        return events

    def _over(self, views: Mapping[str, JobView], done: set[str]) -> list[Event]:
        events = []
        for name, job in list(self._open.items()):
            mine = [
                view for a in self._cover.get(name, ()) if (view := views.get(a.job)) and view.uid == a.uid
            ]
            if done.issuperset(job.stages) or any(v.state == "done" for v in mine):
                events += [*self._news(name), Event("done", name)]
            elif views and not any(view.live for view in mine):
                self._gone[name] = self._gone.get(name, 0) + 1
                if self._gone[name] < _TWICE:
                    continue
                worst = next((v for v in mine if v.state == "failed"), mine[0] if mine else None)
                reason = worst.reason if worst else "it was never submitted"
                what = "skipped" if worst and worst.state == "skipped" else "failed"
                events.append(Event(what, name, {"reason": reason, "log": str(log_path(self._plan, name))}))
            else:
                self._gone.pop(name, None)
                continue
            del self._open[name]
        return events
