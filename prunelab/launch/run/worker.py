"""Inside a job: run stages, resume them, write their records. The one place that catches everything.

As a program (``python -m prunelab.launch.run.worker``) it is a long-lived process of the local pool: jobs come
as JSON lines on stdin, events go as JSON lines to stdout (``idle`` once it could take another job), and all that
libraries print goes to the job's log.
When stdin closes, its driver is gone and so is the worker, at once: what is finished is in the store.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prunelab.errors import PrunelabError, StageError, StoreError
from prunelab.files import full_place, is_full, refused
from prunelab.launch.run.failure import failure_path, keep_failure
from prunelab.launch.run.log import log_path, log_to
from prunelab.launch.track.mirror import Mirror
from prunelab.plan.graph import Job
from prunelab.plan.kind import EVALUATE, TRACK, kind_of, shares_sums
from prunelab.plan.stage import Stage
from prunelab.plan.study import Plan, load_plan
from prunelab.store.artefact import (
    Superseded,
    begin,
    check_owner,
    commit,
    quarantine,
    stage_lock,
    verified_record,
)
from prunelab.store.context import Context, Input, Interrupted, never
from prunelab.store.layout import OUTPUTS, is_done, locate
from prunelab.store.provenance import provenance
from prunelab.store.record import Record

Send = Callable[[str, Mapping[str, Any]], None]


class Coordinator(Protocol):
    """Has the other ranks of this job help with some stages."""

    def stage(
        self, module: str, identity: Mapping[str, Any], context: Context
    ) -> AbstractContextManager[None]:
        """While open, they run this stage as well, ``module``'s function ``run``; sets ``context.group``."""
        ...


@dataclass
class Runner:
    """Runs stages of one plan; ``send(what, values)`` reports, ``runtime`` says how many threads there are."""

    plan: Plan
    runtime: Mapping[str, Any]
    send: Send
    mirror: Mirror | None = None
    interrupted: Callable[[], bool] = never
    coordinator: Coordinator | None = None
    owner: str = field(default_factory=lambda: owner())

    def ensure(self, key: str) -> None:
        """Run a stage unless the store has it; wait if another process is at it."""
        stage = self.plan.stages[key]
        if kind_of(stage.kind).home == "study":
            self._tell(stage)
            return
        if is_done(self._folder(stage)):
            return

        def waiting(words: str) -> None:
            if self.interrupted():
                raise Interrupted(f"ended while another process made {stage.label}")
            self.send("waiting", {"what": words})

        with stage_lock(self.plan.store, key, stage.label, waiting):
            folder = self._folder(stage)
            if is_done(folder):
                self.send("stage", {"key": key, "kind": stage.kind, "ran": False, "seconds": 0.0})
                return
            inputs = {role: self._input(self.plan.stages[k]) for role, k in stage.inputs.items()}
            started = time.perf_counter()
            self._run(stage, folder, inputs)
            seconds = time.perf_counter() - started
            self.send("stage", {"key": key, "kind": stage.kind, "ran": True, "seconds": seconds})

    def _tell(self, stage: Stage) -> None:
        """Tell the trial's tracker the last of it; everything before was told as it came."""
        started = time.perf_counter()
        if self.mirror:
            self.mirror.finish(True)
        seconds = time.perf_counter() - started
        self.send("stage", {"key": stage.key, "kind": stage.kind, "ran": True, "seconds": seconds})

    def _input(self, stage: Stage) -> Input:
        """Return a finished, verified input; one that is damaged goes to quarantine and is made again."""
        damage = StoreError(f"{stage.label} could not be made.")
        for _ in range(2):
            self.ensure(stage.key)
            folder = self._folder(stage)
            try:
                return Input(verified_record(folder, stage.key), folder / OUTPUTS)
            except StoreError as error:
                damage = error
                with stage_lock(self.plan.store, stage.key, stage.label):
                    if is_done(folder):
                        print(
                            f"damaged: {error} Moved to {quarantine(self.plan.store, folder)}, running it again."
                        )
        raise damage

    def _previous(self, stage: Stage) -> Input | None:
        """Return the longest finished prefix of a stage's work that is undamaged."""
        for key in stage.continues:
            folder = locate(self.plan.store, stage.kind, key)
            if is_done(folder):
                try:
                    return Input(verified_record(folder, key), folder / OUTPUTS)
                except StoreError as error:
                    print(f"not continued from: {error}")
        return None

    def _run(self, stage: Stage, folder: Path, inputs: Mapping[str, Input]) -> None:
        spec = {"kind": stage.kind, "key": stage.key, "identity": stage.identity, "inputs": stage.inputs}
        work = begin(folder, spec, self.owner)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        context = Context(
            folder, work, work / OUTPUTS, inputs, {**stage.runtime, **self.runtime}, self._previous(stage),
            lambda what, done, total: self.send("progress", {"what": what, "done": done, "total": total}),
            lambda row: None, self.interrupted,
        )  # fmt: skip
        context.resume()
        if self.mirror:
            context.listen = self.mirror.listener(stage.key)
        clock = time.perf_counter()
        module = kind_of(stage.kind).module
        run = importlib.import_module(module).run
        coordinator = self.coordinator if shares_sums(stage.kind, stage.inputs, stage.identity) else None
        try:
            with coordinator.stage(module, stage.identity, context) if coordinator else nullcontext():
                result = run(stage.identity, context)
        except Exception:
            check_owner(
                folder, self.owner
            )  # files vanish under a process that was replaced; that is its reason
            raise
        cost = {**result.cost, "seconds": time.perf_counter() - clock, "threads": self.runtime.get("threads")}
        if context.group is not None:
            cost["ranks"] = context.group.size
        commit(
            folder,
            Record(
                stage.kind,
                stage.key,
                stage.slug,
                stage.identity,
                stage.inputs,
                result.metrics,
                result.tables,
                cost,
                protocols=result.protocols,
                rows=result.rows,
                provenance={
                    **provenance(),
                    "started": started,
                    "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                },
            ),
            self.owner,
        )

    def _folder(self, stage: Stage) -> Path:
        return locate(self.plan.store, stage.kind, stage.key, stage.folder)


def owner() -> str:
    """Name this attempt: two processes never share a name, nor do two starts of one SLURM job."""
    job = os.environ.get("SLURM_JOB_ID")
    here = f"{socket.gethostname()}-{os.getpid()}"
    return f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')} {here}" if job else here


def run_job(
    plan: Plan, job: Job, runtime: Mapping[str, Any], send: Send, interrupted: Callable[[], bool] = never,
    coordinator: Coordinator | None = None, log: Path | None = None,
) -> bool:  # fmt: skip
    """Run a job's stages in order; report ``done``, or ``failed`` with the reason. Returns whether it succeeded.

    A reason is sent before it is noted in the study and told to the tracker: what cannot be written hides it from nobody.
    ``log``: the file that this process's prints go to, None if that is the terminal. Raises Interrupted
    at the next safe point once ``interrupted()`` says so.
    """
    send("started", {"pid": os.getpid()})
    told, mirror, key = any(plan.stages[key].kind == TRACK for key in job.stages), None, job.stages[0]
    logged = {"log": str(log)} if log is not None else {}
    try:
        if told and job.trial is not None:
            mirror = Mirror(plan, plan.trials[job.trial], own=job.stages)
        runner = Runner(plan, runtime, send, mirror, interrupted, coordinator)
        for key in job.stages:
            runner.ensure(key)
            failure_path(plan, key).unlink(missing_ok=True)
            if mirror:
                mirror.stage_done(key)
            if interrupted() and key != job.stages[-1]:
                raise Interrupted(f"ended after stage {plan.stages[key].kind}")
    except Superseded as error:  # another process does this job; its result is the one that counts
        print(f"superseded: {error}", flush=True)
        send("failed", {"reason": str(error), "superseded": True, **logged})
        return False
    except Exception as error:  # whatever it is, it is recorded, and other jobs go on
        with suppress(OSError):  # nothing here may hide the reason, a full disk least of all
            traceback.print_exc()
        reason = reason_of(error, _places(plan, key))
        note = {"key": key, "job": job.name, "stage": plan.stages[key].kind, "reason": reason,
                "traceback": traceback.format_exc(), "time": time.time(), **logged}  # fmt: skip
        # first of all: what is written below may meet the same full disk
        send("failed", {"reason": reason, "stage": plan.stages[key].kind, **logged})
        keep_failure(plan, note)
        if mirror:
            mirror.failed(reason)
        return False
    send("done", {})
    return True


def reason_of(error: Exception, places: Sequence[Path]) -> str:
    """Return what to tell of an error, in one line; ``places``: where there may be no room if the error names no file."""
    if isinstance(error, OSError) and is_full(error):
        error = refused(full_place(error, places), error)
    reason = " ".join(str(error).split()) or repr(error)
    return reason if isinstance(error, PrunelabError) else f"{type(error).__name__}: {reason}"


def _places(plan: Plan, key: str) -> list[Path]:
    """Return where a stage writes: its folder, the study, and where libraries put what is for the moment."""
    stage = plan.stages[key]
    own = [locate(plan.store, stage.kind, key, stage.folder)] if kind_of(stage.kind).home == "store" else []
    return [*own, plan.folder, Path(tempfile.gettempdir())]


def worker_environment(threads: int) -> dict[str, str]:
    """Return what a process that runs jobs needs: number of threads, deterministic kernels, where this prunelab is."""
    path = os.pathsep.join(
        dict.fromkeys(str(Path(p).absolute()) for p in sys.path if Path(p or ".").is_dir())
    )
    return {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8",
        "PYTHONOPTIMIZE": "",  # transformers builds its classes from docstrings, which -OO takes away
    }  # fmt: skip


def main() -> int:
    """Serve jobs until stdin closes."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # from here on, prints go to the log
    lines = _lines_until_orphaned()
    plans: dict[str, Plan] = {}
    # the slow imports happen while the driver is still looking at the store
    importlib.import_module(kind_of(EVALUATE).module)
    while (line := lines()) is not None:
        order = json.loads(line)
        plan = plans.setdefault(order["plan"], load_plan(Path(order["plan"])))
        job = Job(order["name"], tuple(order["stages"]), order["trial"], (), ())

        def send(what: str, values: Mapping[str, Any], name: str = job.name) -> None:
            events.write(json.dumps({"what": what, "job": name, "values": dict(values)}) + "\n")

        log = log_path(plan, job.name)
        try:
            log_to(log, f"pid {os.getpid()}")
        except StoreError as error:
            send("failed", {"reason": str(error)})
        else:
            run_job(plan, job, order["runtime"], send, log=log)
        send("idle", {})
    return 0


def _lines_until_orphaned() -> Callable[[], str | None]:
    """Read stdin in a thread, so that the end of the driver is noticed in the middle of a job as well."""
    import queue

    waiting: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return waiting.get


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, StageError):
        sys.exit(130)
