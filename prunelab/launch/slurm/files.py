"""A study's notes about its jobs on the cluster: what was meant to be submitted, under which id, what jobs say.

jobs/<job>.json          every attempt at a job, written before it is submitted
slurm/<uid>/jobs.json    one submission, always an array: what its tasks run
slurm/<uid>/id           the cluster's id, written after; if it is missing, the job's name leads to it
slurm/<uid>/<n>.json     what task n noted about itself: node, starts, how it ended
slurm/<uid>/<n>.events   its events, one JSON object a line
slurm/<uid>/<n>.ranks    where its other ranks find rank 0, while it runs
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunelab.files import file_name, make_folder, replace_file
from prunelab.launch.slurm.estimate import Need
from prunelab.plan.graph import Job


@dataclass(frozen=True)
class Attempt:
    """One submission of a job: task ``index`` of ``uid``."""

    job: str
    uid: str
    index: int
    stages: tuple[str, ...]
    need: Mapping[str, Any]
    after: tuple[str, ...]
    time: float
    number: int = 1


class Files:
    """Reads and writes the notes in a study's folder."""

    def __init__(self, study: Path) -> None:
        self.study, self.jobs, self.slurm = study, study / "jobs", study / "slurm"

    def folder(self, uid: str) -> Path:
        """Return the folder of a submission."""
        return self.slurm / uid

    def intend(self, uid: str, plan_file: Path, jobs: Sequence[Job], need: Need, now: float) -> Path:
        """Write down what is going to be submitted; return the file that the tasks read."""
        make_folder(self.jobs)
        make_folder(self.folder(uid))
        tasks = [{"name": job.name, "stages": job.stages, "trial": job.trial} for job in jobs]
        plain = {"plan": str(plan_file), "need": asdict(need), "jobs": tasks}
        replace_file(self.folder(uid) / "jobs.json", json.dumps(plain, indent=1).encode("utf-8"))
        for index, job in enumerate(jobs):
            note = self._job(job.name)
            note["attempts"].append(
                {"uid": uid, "index": index, "stages": job.stages, "need": asdict(need),
                 "after": [*job.after, *job.after_any], "time": now}
            )  # fmt: skip
            self._write_job(job.name, note)
        return self.folder(uid) / "jobs.json"

    def withdraw(self, uid: str, jobs: Sequence[Job]) -> None:
        """Forget an intent whose submission was refused or taken back."""
        for job in jobs:
            note = self._job(job.name)
            note["attempts"] = [attempt for attempt in note["attempts"] if attempt["uid"] != uid]
            self._write_job(job.name, note)

    def set_id(self, uid: str, job_id: str) -> None:
        """Note the id that the cluster gave."""
        replace_file(self.folder(uid) / "id", f"{job_id}\n".encode("ascii"))

    def id_of(self, uid: str) -> str:
        """Return the id that was noted, or an empty string."""
        try:
            return (self.folder(uid) / "id").read_text(encoding="ascii").strip()
        except OSError:
            return ""

    def latest(self) -> dict[str, Attempt]:
        """Return the last attempt at every job that was ever submitted, by the job's name."""
        return {attempt.job: attempt for attempt in self._latest()}

    def _latest(self) -> Iterator[Attempt]:
        for path in self.jobs.glob("*.json"):
            note = _read(path)
            if note.get("attempts"):
                last = note["attempts"][-1]
                yield Attempt(
                    note["name"], last["uid"], last["index"], tuple(last["stages"]), last["need"], tuple(last["after"]),
                    last["time"], len(note["attempts"]),
                )  # fmt: skip

    def task(self, attempt: Attempt) -> dict[str, Any]:
        """Return what a task noted about itself; {} if it never started."""
        return _read(self.folder(attempt.uid) / f"{attempt.index}.json")

    def events(self, attempt: Attempt) -> Path:
        """Return the file of a task's events."""
        return self.folder(attempt.uid) / f"{attempt.index}.events"

    def outputs(self, attempt: Attempt) -> list[Path]:
        """Return the files that SLURM wrote for a task: what came before its log, and SLURM's last words."""
        return sorted(self.folder(attempt.uid).glob(f"*_{attempt.index}_0_log.*"))

    def _job(self, name: str) -> dict[str, Any]:
        return _read(self._path(name)) or {"schema": 1, "name": name, "attempts": []}

    def _path(self, name: str) -> Path:
        return self.jobs / f"{file_name(name)}.json"

    def _write_job(self, name: str, note: Mapping[str, Any]) -> None:
        # not flushed to disk one by one: a machine that loses power loses the submission as well
        replace_file(self._path(name), json.dumps(note).encode("utf-8"), sync=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
