"""The local launcher: a pool of worker processes, each with its own threads, fed by the graph of jobs.

Workers live as long as the study, so torch is imported once per process rather than once per trial; a
worker that dies (killed, out of memory) fails its job, with the reason, and is replaced.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunelab.errors import LaunchError
from prunelab.launch.run.base import Event, Launcher, Order
from prunelab.launch.run.log import last_line, log_path, opened_log
from prunelab.launch.run.queue import Queue
from prunelab.launch.run.worker import worker_environment
from prunelab.plan.graph import Job

_GRACE_S = 5.0


@dataclass
class Worker:
    """A process of the pool."""

    number: int
    process: subprocess.Popen[str]
    job: Job | None = (
        None  # until it is idle again: after the last event it may write a note, or tell a tracker
    )
    told: bool = False  # how the job ended


class Pool(Launcher):
    """Runs jobs in up to ``resources.workers`` processes of ``resources.threads`` threads each."""

    def run(self, order: Order, listen: Callable[[Event], None]) -> None:
        """Run the order's jobs; returns when all are over. Ctrl-C stops the workers and travels on."""
        jobs = Queue(order.jobs)
        news: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()
        workers = order.resources.workers or 1
        with _processes() as processes:
            while not jobs.finished or any(process.job for process in processes):
                _hand_out(order, jobs, processes, min(workers, len(order.jobs)), news)
                if not any(process.job for process in processes):
                    raise LaunchError(
                        f"jobs that wait for each other: {', '.join(jobs.waiting)}. Please report this plan."
                    )
                worker, message = news.get()
                for event in told(order, jobs, processes, worker, message):
                    listen(event)


def _hand_out(order: Order, jobs: Queue, workers: list[Worker], limit: int, news: queue.Queue[Any]) -> None:
    while True:
        idle = next((worker for worker in workers if worker.job is None), None)
        if idle is None and len(workers) >= limit:
            return
        job = jobs.take()
        if job is None:
            return
        if idle is None:
            number = next(n for n in range(limit) if n not in {worker.number for worker in workers})
            idle = _start(order, number, news)
            workers.append(idle)
        idle.job, idle.told = job, False
        runtime = {"threads": order.resources.threads}
        message = {
            "plan": str(order.plan_file),
            "name": job.name,
            "stages": job.stages,
            "trial": job.trial,
            "runtime": runtime,
        }
        assert idle.process.stdin is not None
        try:
            idle.process.stdin.write(json.dumps(message) + "\n")
            idle.process.stdin.flush()
        except OSError:
            pass  # it died; the end of its stdout says so


def told(
    order: Order, jobs: Queue, workers: list[Worker], worker: Worker, message: dict[str, Any] | None
) -> Iterator[Event]:
    """Yield what a worker's message means for the study; None: its stdout ended, and the worker with it."""
    if message is not None and message["what"] == "idle":
        worker.job = None
        return
    if message is not None:
        event = Event(message["what"], message["job"], message["values"])
        yield event
        if event.what in ("done", "failed"):
            worker.told = True
            yield from jobs.over(event.job, event.what == "done")
        return
    workers.remove(worker)  # its stdout ended
    code = worker.process.wait()
    if worker.job is not None and not worker.told:
        name = worker.job.name
        logs = (log_path(order.plan, name), _worker_log(order, worker.number))
        log = next((path for path in logs if path.is_file()), logs[1])  # it may not have come to the job's
        yield Event("failed", name, {"reason": _why_dead(code, log), "log": str(log)})
        yield from jobs.over(name, False)


def _worker_log(order: Order, number: int) -> Path:
    return log_path(order.plan, f"worker-{number}")


def _why_dead(code: int, log: Path) -> str:
    if code == -signal.SIGKILL:
        return "the worker was killed by SIGKILL: out of memory? (runtime.workers=1 or a smaller runtime.batch_tokens)"
    if code < 0:
        return f"the worker was ended by {signal.Signals(-code).name}"
    return f"the worker ended with exit code {code}: {last_line([log]) or 'it said nothing'}"


def _start(order: Order, number: int, news: queue.Queue[Any]) -> Worker:
    environment = os.environ | worker_environment(order.resources.threads or 1)
    if (order.resources.gpus or 0) > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = (
            seen[number] if len(seen) > number and seen[number] else str(number)
        )
    with opened_log(_worker_log(order, number)) as stderr:
        # its own session: Ctrl-C reaches the driver alone, which then stops its workers in order
        process = subprocess.Popen(
            [sys.executable, "-m", "prunelab.launch.run.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=stderr, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
    worker = Worker(number, process)
    threading.Thread(target=_listen, args=(worker, news), daemon=True).start()
    return worker


def _listen(worker: Worker, news: queue.Queue[Any]) -> None:
    assert worker.process.stdout is not None
    for line in worker.process.stdout:
        news.put((worker, json.loads(line)))
    news.put((worker, None))


@contextmanager
def _processes() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        yield workers
    finally:
        for worker in workers:
            if worker.process.stdin is not None:
                worker.process.stdin.close()  # the worker leaves when its stdin ends
        for worker in workers:
            try:
                worker.process.wait(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
