"""Why a stage failed: a note in the study's folder, kept until the stage succeeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunelab.errors import StoreError
from prunelab.files import replace_file
from prunelab.plan.study import Plan


@dataclass(frozen=True)
class Failure:
    """``log`` is empty where the job printed to a terminal; ``time`` in seconds since 1970."""

    reason: str
    log: str = ""
    time: float = 0.0


def failure_path(plan: Plan, key: str) -> Path:
    """Return where the reason of a failed stage is kept."""
    return plan.folder / "failures" / f"{key[:16]}.json"


def keep_failure(plan: Plan, note: Mapping[str, Any]) -> None:
    """Write the note of the stage ``note["key"]``; that it cannot be written hides no reason, it is only said."""
    path = failure_path(plan, note["key"])
    try:
        replace_file(path, json.dumps(note, indent=1).encode("utf-8"))
    except (OSError, StoreError) as error:
        with suppress(OSError):
            print(f"no note of this failure: {error}", flush=True)


def read_failure(plan: Plan, key: str) -> Failure | None:
    """Return why a stage failed, None if it did not."""
    path = failure_path(plan, key)
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return Failure(str(note["reason"]), str(note.get("log", "")), float(note.get("time", 0.0)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Failure("unknown: its note cannot be read", str(path))
