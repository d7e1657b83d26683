"""What a launcher is: it runs the jobs of a plan and says what happens. Where they run is its own business."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from prunelab.plan.graph import Job
from prunelab.plan.study import Plan

What = Literal["submitted", "started", "progress", "waiting", "stage", "done", "failed", "skipped"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    ``stage`` events carry ``ran`` (False if another process had finished it) and ``seconds``; ``progress``
    events ``done`` of ``total``; ``waiting`` for ``what``, and who holds it;
    ``failed`` and ``skipped`` a ``reason``, and the log's place. ``submitted`` is
    of no job: how many went to a cluster, and how many were there already.
    """

    what: What
    job: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What one job may use on the machine it runs on; None leaves the choice to the launcher."""

    workers: int | None
    threads: int | None
    gpus: int | None = None
    mem_gib: float | None = None
    time_min: int | None = None


@dataclass(frozen=True)
class Order:
    """Everything a launcher needs: the plan, the unchanging file that holds it, the jobs to run, limits."""

    plan: Plan
    plan_file: Path
    jobs: Sequence[Job]
    resources: Resources


class Launcher(Protocol):
    """Runs every job of an order after those it waits for, and reports through ``listen``.

    A failed job never stops the others; jobs that need its result are reported as skipped. Returns when all is
    over, or, if ``detached``, when all is on its way. KeyboardInterrupt stops the jobs (or leaves them, as
    ``stopped`` says) and travels on.
    """

    detached: bool = False
    stopped: str = "Stopped. What is finished is in the store; the same command goes on from there."

    def run(self, order: Order, listen: Callable[[Event], None]) -> None:
        """Run the order's jobs."""
        ...

    def describe(self, plan: Plan, todo: Sequence[Job]) -> Any:
        """Return what a dry run should say about where jobs would run, as rich shows it; None for nothing."""
        return None
