"""Every job in this process, one after the other: for debuggers and tests. Imports torch here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from prunelab.errors import LaunchError
from prunelab.launch.run.base import Event, Launcher, Order
from prunelab.launch.run.queue import Queue
from prunelab.launch.run.worker import run_job


class Inline(Launcher):
    """Runs jobs in the order of the graph; prints go to the terminal."""

    def run(self, order: Order, listen: Callable[[Event], None]) -> None:
        """Run the order's jobs; returns when all are over."""
        if sys.flags.optimize > 1:
            raise LaunchError(
                "hydra/launcher=inline runs jobs in this process, and python -OO (PYTHONOPTIMIZE=2) takes away the "
                "docstrings that transformers reads. Leave -OO away, or use hydra/launcher=local."
            )
        queue = Queue(order.jobs)
        while (job := queue.take()) is not None:

            def send(what: str, values: Mapping[str, Any], name: str = job.name) -> None:
                listen(Event(what, name, values))  # type: ignore[arg-type]

            ok = run_job(order.plan, job, {"threads": order.resources.threads}, send)
            for event in queue.over(job.name, ok):
                listen(event)
