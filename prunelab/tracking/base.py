"""What a trial tells its tracker, and the tracker that listens to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

RUN_ID_LENGTH = 16


@dataclass(frozen=True)
class RunInfo:
    """One trial as a tracker sees it. ``config`` is flat, keys without dots; ``folder`` gets the files."""

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()


def run_id(trial_key: str) -> str:
    """A trial's run id: the first 16 hex digits of its key, so that a resumed trial continues its own run."""
    return trial_key[:RUN_ID_LENGTH]


class Tracker(Protocol):
    """A copy of a trial's numbers somewhere else. No call may raise: the trial outlives its tracker."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirror one metrics row: ``event``, its own axis (``shot``, ``block``), and numbers."""
        ...

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep ``rows`` as a table that is sent at the end."""
        ...

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final numbers."""
        ...

    def finish(self, ok: bool) -> None:
        """End the run; ``ok`` False marks it failed. Later calls do nothing."""
        ...


class NullTracker:
    """Listens to nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Do nothing."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, ok: bool) -> None:
        """Do nothing."""
