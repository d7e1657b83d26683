"""How a trial's run stands: a small file beside its folders, and a lock that is held while it lives.

W&B's own files do not say whether a server has them: an online run that broke off looks like one that did not.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from prunelab.files import replace_file
from prunelab.lock import is_locked, locked

SUFFIX = ".run.json"
UNOPENED = "none"


@dataclass(frozen=True)
class Note:
    """``mode`` online, offline or UNOPENED; ``ended`` open, ok or failed; ``rows`` of history, told or known to the server.

    ``whole``: the run's folder tells all there is; ``sent``: the server has all of it; ``reason`` says in one
    clause why not, or why the run is offline. ``refused``: W&B did not open the run as it is.
    """

    id: str
    mode: str
    ended: str = "open"
    whole: bool = False
    sent: bool = False
    rows: int = 0
    reason: str = ""
    refused: bool = False

    def save(self, folder: Path) -> None:
        """Write the note into the study's tracking folder, by rename."""
        replace_file(folder / f"{self.id}{SUFFIX}", json.dumps(asdict(self)).encode("utf-8"))


def read_note(folder: Path, run_id: str) -> Note | None:
    """Return a run's note, None where there is none or it cannot be read."""
    try:
        return Note(**json.loads((folder / f"{run_id}{SUFFIX}").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def live_lock(folder: Path, run_id: str) -> AbstractContextManager[None]:
    """Hold the lock of a run, which ends with the process that tells it; StoreError if another process has it."""
    return locked(folder / f"{run_id}.lock", f"W&B run {run_id}", timeout=0)


def is_live(folder: Path, run_id: str) -> bool:
    """Say whether a process on a machine that shares locks with this one is telling the run."""
    return is_locked(folder / f"{run_id}.lock")
