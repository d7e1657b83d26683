"""What a person sees while a study runs: trials done, running, failed, time left; one line per running job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prunelab.launch.run.base import Event


class View:
    """Turns events into progress bars on a terminal, and into one line per job elsewhere (logs, pipes)."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._live = console, console.is_terminal
        self._started: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._waits: dict[str, str] = {}
        self._total, self._over, self._failed = total, 0, 0
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim"), console=console, transient=True,
        )  # fmt: skip
        self._study = self._progress.add_task("jobs", total=total, note="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bars while the block runs, if this is a terminal."""
        if not self._live:
            yield
            return
        with self._progress:
            yield

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        if event.what == "submitted":
            there = f", {event.values['there']} were there already" if event.values["there"] else ""
            self._console.print(f"submitted {event.values['jobs']} jobs{there}", highlight=False)
        elif event.what == "started":
            self._started[event.job] = time.monotonic()
            self._bars[event.job] = self._progress.add_task(f"  {event.job}", total=None, note="")
        elif event.what == "progress" and event.job in self._bars:
            values: dict[str, Any] = dict(event.values)
            self._progress.update(
                self._bars[event.job],
                completed=values["done"],
                total=values["total"] or None,
                note=values["what"],
            )
        elif event.what == "waiting":
            self._wait(event)
        elif event.what in ("done", "failed", "skipped"):
            self._end(event)

    def _wait(self, event: Event) -> None:
        """Say once whom a job waits for, and keep saying it on the job's bar."""
        words = event.values["what"]
        if event.job in self._bars:
            self._progress.update(self._bars[event.job], note=words)
        if self._waits.get(event.job) != words:
            self._waits[event.job] = words
            self._console.print(
                f"{event.job}: {words}", style="yellow", highlight=False, soft_wrap=True, markup=False
            )

    def _end(self, event: Event) -> None:
        self._over += 1
        self._failed += event.what != "done"
        bar = self._bars.pop(event.job, None)
        if bar is not None:
            self._progress.remove_task(bar)
        self._progress.update(
            self._study, completed=self._over, note=f"{self._failed} failed" if self._failed else ""
        )
        seconds = time.monotonic() - self._started.pop(event.job, time.monotonic())
        head = f"[{self._over}/{self._total}] {event.job}"
        if event.what == "done" and not self._live:
            self._console.print(f"{head}  {seconds:.1f} s", highlight=False, soft_wrap=True, markup=False)
        elif event.what != "done":
            self._console.print(
                f"{head}  {event.what}: {event.values['reason']}",
                style="red",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
            if "log" in event.values:
                self._console.print(
                    f"    log: {event.values['log']}", highlight=False, soft_wrap=True, markup=False
                )
