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


@dataclass(frozen=True)
class Artefact:
    """What a stage left in the store: ``files`` by their names, with sha256 and bytes in ``metadata``.

    ``name`` holds the stage's key, so equal work is one artefact whoever refers to it. Files are never copied.
    """

    name: str
    type: str
    files: Mapping[str, Path]
    metadata: Mapping[str, Any]


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

    def artefact(self, item: Artefact, *, used: bool) -> None:
        """Name a file of the store as this run's input (``used``) or as what it made; sent at the end."""
        ...

    def alert(self, title: str, text: str) -> None:
        """Tell people that the trial failed."""
        ...

    def finish(self, ok: bool) -> bool:
        """End the run; ``ok`` False marks it failed. Says whether nothing is left to tell; later calls do nothing."""
        ...


class NullTracker:
    """Listens to nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Do nothing."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def artefact(self, item: Artefact, *, used: bool) -> None:
        """Do nothing."""

    def alert(self, title: str, text: str) -> None:
        """Do nothing."""

    def finish(self, ok: bool) -> bool:
        """Do nothing."""
        return True
