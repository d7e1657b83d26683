"""Inside a SLURM job: run the job that a submission's file names, note what happens, leave in order at a signal.

SIGUSR2 (before the time limit, and at preemption where the cluster sends it) and SIGTERM only raise a flag; the
running shot or stage ends and is on disk, then the job asks to be queued again and leaves. Nothing is lost when no
signal comes: progress is saved shot by shot in any case.

Of several tasks that srun starts, the first is rank 0 and does all this; the others help it (prunelab.stages.ranks) and
leave when it says so. submitit's TorchDistributedEnvironment would do without its pickles, but takes a node's name in
SLURM for a host's, guesses a port from the job's id, and names GPU 0 to the first task even where SLURM gave it GPU 2.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from prunelab.errors import StoreError
from prunelab.files import open_shared, replace_file
from prunelab.launch.run.log import log_path, log_to
from prunelab.launch.run.worker import run_job
from prunelab.launch.slurm import scheduler
from prunelab.plan.graph import Job
from prunelab.plan.study import load_plan
from prunelab.store.context import Interrupted

_PROGRESS_S = 0.5
AGAIN = 75  # the exit code of a job that left to be queued again


class Note:
    """What this task tells about itself: a small file, and a line per event."""

    def __init__(self, folder: Path, index: int) -> None:
        self._path, self._events = folder / f"{index}.json", folder / f"{index}.events"
        try:
            self._values: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._values = {"starts": []}
        self._spoken = 0.0

    def start(self, gpus: str) -> None:
        """Note a start: where, when, as which job, with which GPUs."""
        now = {"job": job_id(), "restart": restarts(), "node": _nodes(),
               "time": time.time(), "pid": os.getpid(), "gpus": gpus, "ranks": ranks()}  # fmt: skip
        self._values |= {"state": "running", "reason": "", "starts": [*self._values["starts"], now]}
        self._save()

    def end(self, state: str, reason: str = "") -> None:
        """Note how this start ended: done, failed, requeued, stopped."""
        self._values |= {"state": state, "reason": reason, "ended": time.time()}
        self._save()

    def event(self, what: str, values: Mapping[str, Any]) -> None:
        """Append an event; of progress only as much as a person can read."""
        now = time.monotonic()
        if what == "progress" and now - self._spoken < _PROGRESS_S:
            return
        self._spoken = now if what == "progress" else self._spoken
        with (
            suppress(OSError),
            open_shared(self._events) as file,
        ):  # a full disk: the log and SLURM say the rest
            file.write(json.dumps({"what": what, "values": dict(values)}) + "\n")

    def _save(self) -> None:
        with suppress(StoreError):
            replace_file(self._path, json.dumps(self._values).encode("utf-8"))


class Signals:
    """Which signals came; calling it says whether the work should end."""

    def __init__(self) -> None:
        self.came: set[int] = set()
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came.add(number)

    def __call__(self) -> bool:
        return bool(self.came)


def job_id() -> str:
    """Return the id that SLURM's commands take for this very task."""
    return os.environ.get("SLURM_JOB_ID", "")


def restarts() -> int:
    """Return how often SLURM has queued this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0)


def ranks() -> int:
    """Return how many tasks srun started for this job."""
    return int(os.environ.get("SLURM_NTASKS", "1") or 1)


def _nodes() -> str:
    if int(os.environ.get("SLURM_JOB_NUM_NODES", "1") or 1) > 1:
        return os.environ.get("SLURM_JOB_NODELIST", "")
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def run(task_file: Path, index: int) -> int:
    """Run task ``index`` of a submission; return the exit code."""
    signals = Signals()
    gpus = own_gpu()
    submission = json.loads(task_file.read_text(encoding="utf-8"))
    entry = submission["jobs"][index]
    plan = load_plan(Path(submission["plan"]))
    job = Job(entry["name"], tuple(entry["stages"]), entry["trial"], (), ())
    note = Note(task_file.parent, index)
    note.start(gpus)
    log = log_path(plan, job.name)
    log_to(log, f"job {job_id()} restart {restarts()} on {socket.gethostname()}")
    failed: dict[str, Any] = {}
    coordinator = _ranks().Coordinator(_meeting(task_file, index), _start(), ranks()) if ranks() > 1 else None

    def send(what: str, values: Mapping[str, Any]) -> None:
        if what == "failed":
            failed.update(values)
        if "superseded" not in values:  # the copy that replaced this task speaks for the job
            note.event(what, values)

    try:
        ok = run_job(plan, job, {"threads": submission["need"]["threads"]}, send, signals, coordinator, log)
    except Interrupted as end:
        if coordinator is not None:
            coordinator.end()
        return _leave(note, signals, str(end))
    if "superseded" not in failed:
        note.end("done" if ok else "failed", failed.get("reason", ""))
    if coordinator is not None:
        coordinator.end()
    return 0 if ok else 1


def help_out(task_file: Path, index: int) -> int:
    """Be one of the other ranks of task ``index``; return the exit code.

    A signal is rank 0's to act on; its log is beside the job's.
    """
    Signals()
    own_gpu()
    rank = int(os.environ["SLURM_PROCID"])
    submission = json.loads(task_file.read_text(encoding="utf-8"))
    log = log_path(load_plan(Path(submission["plan"])), f"{submission['jobs'][index]['name']}.rank{rank}")
    log_to(log, f"rank {rank} of {ranks()}, job {job_id()} on {socket.gethostname()}, pid {os.getpid()}")
    return _ranks().join(_meeting(task_file, index), _start(), rank, ranks())


def own_gpu() -> str:
    """Of several tasks on a node, leave each the GPU of its number among those SLURM gave; return what SLURM gave."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",")
    if given and ranks() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[int(os.environ.get("SLURM_LOCALID", "0")) % len(names)]
    return given


def _ranks() -> Any:
    return importlib.import_module(
        "prunelab.stages.ranks"
    )  # torch, which this half does not import by itself


def _meeting(task_file: Path, index: int) -> Path:
    return task_file.parent / f"{index}.ranks"


def _start() -> str:
    return f"{job_id()}.{restarts()}"


def _leave(note: Note, signals: Signals, where: str) -> int:
    """Ask for another start, unless SLURM is ending this job anyway (scancel, its own requeue)."""
    names = ", ".join(signal.Signals(number).name for number in sorted(signals.came))
    print(f"{names}: {where}; progress is on disk", flush=True)
    state = scheduler.state_of(job_id())
    if state == "RUNNING" or (not state and signal.SIGUSR2 in signals.came):
        note.end("requeued", names)
        refused = scheduler.requeue(job_id())
        if not refused:
            return AGAIN
        note.end("stopped", f"ended by {names}; it could not be queued again: {refused}")
        note.event("failed", {"reason": f"ended by {names}; it could not be queued again: {refused}"})
        return AGAIN
    note.end("stopped", f"ended by {names} ({state.lower() or 'state unknown'})")
    return AGAIN


def main() -> int:
    """Run the task that SLURM's environment names, as rank 0 or as a helper of it."""
    work = run if os.environ.get("SLURM_PROCID", "0") == "0" else help_out
    return work(Path(sys.argv[1]), int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code)
