"""What a stage gets and gives: the only types that cross the seam between the two halves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prunelab.files import replace_file
from prunelab.store.layout import METRICS
from prunelab.store.record import Record
from prunelab.tracking.jsonl import JsonlWriter

_PROGRESS = "progress.json"


class Interrupted(BaseException):
    """A signal asked the job to end and progress is safe. No error: ``except Exception`` must not swallow it."""


def never() -> bool:
    """Say that nobody asked the work to end."""
    return False


class Group(Protocol):
    """Processes that run a stage together."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def meet(self, stop: bool = False) -> bool:
        """Wait for all; return what rank 0 says about ``stop``."""
        ...


@dataclass(frozen=True)
class Result:
    """What a stage found. ``metrics`` and ``tables`` repeat bit for bit; ``cost`` need not.

    ``protocols``: how each number was measured, by its name; ``rows``: those of metrics from outside the package, by theirs.
    """

    metrics: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """A finished stage that this one reads: its record and the folder of its outputs."""

    record: Record
    folder: Path


@dataclass
class Context:
    """Folders and callbacks of one attempt.

    ``outputs`` is where results go (renamed into place at the end), ``work`` where progress lives that must
    outlast a kill. ``log`` appends a row to metrics.jsonl; ``progress(what, done, total)`` is for people.
    ``previous`` is the longest finished prefix of this stage's work, if the store has one. ``group`` are the
    processes that run the stage together, None if this one is alone; all but rank 0 read the same files, write
    nothing, and go on from what rank 0 ``resumed``.
    """

    folder: Path
    work: Path
    outputs: Path
    inputs: Mapping[str, Input]
    runtime: Mapping[str, Any]
    previous: Input | None
    progress: Callable[[str, int, int], None]
    listen: Callable[[Mapping[str, Any]], None]
    interrupted: Callable[[], bool] = never
    group: Group | None = None
    resumed: tuple[int, dict[str, Any]] | None = None

    @property
    def leads(self) -> bool:
        """True if this process writes what the stage finds."""
        return self.group is None or self.group.rank == 0

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl, on disk before this returns, and show it to the tracker."""
        if not self.leads:
            return
        with JsonlWriter(self.folder / METRICS) as writer:
            writer.write(row)
        self.listen(row)

    def checkpoint(self, step: int, values: Mapping[str, Any] | None = None) -> None:
        """Note that ``step`` steps are safe in ``work``; rows logged after this are dropped if the job is killed.

        Raises Interrupted, the note written, if the job was asked to end (preemption, time limit); of several
        processes all end at the same step, when rank 0 was asked to.
        """
        if self.leads:
            metrics = self.folder / METRICS
            size = metrics.stat().st_size if metrics.exists() else 0
            note = {"step": step, "metrics_bytes": size, "values": dict(values or {})}
            replace_file(self.work / _PROGRESS, json.dumps(note).encode("utf-8"))
        stop = self.interrupted()
        if self.group is not None:
            stop = self.group.meet(stop)
        if stop:
            raise Interrupted(f"ended after step {step}")

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Return the last checkpoint's step and values (0 and {} at the start); cut metrics.jsonl back to it."""
        if self.resumed is not None:
            return self.resumed
        metrics, note = self.folder / METRICS, {"step": 0, "metrics_bytes": 0, "values": {}}
        path = self.work / _PROGRESS
        if path.is_file():
            note = json.loads(path.read_text(encoding="utf-8"))
        if metrics.exists():
            with metrics.open("r+b") as file:
                file.truncate(note["metrics_bytes"])
        return int(note["step"]), note["values"]


def steps(context: Context, what: str, total: int) -> Callable[[Mapping[str, Any]], None]:
    """Return a listener that counts every row it is told as one of ``total`` steps."""
    counted = iter(range(1, total + 1))
    return lambda row: context.progress(what, next(counted, total), total)
