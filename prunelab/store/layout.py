"""Where things are inside a store, and whether they are finished."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from prunelab.errors import StoreError
from prunelab.files import make_folder

DONE = "DONE"
SPEC = "spec.json"
RECORD = "record.json"
METRICS = "metrics.jsonl"
WORK = "work"
OUTPUTS = "outputs"
_OTHER = ("locks", "quarantine")
_SMALL = 1 << 16  # bytes: a study's plan and notes


def is_done(folder: Path) -> bool:
    """Say whether the stage in ``folder`` is finished: DONE is written last, after record and outputs."""
    return (folder / DONE).is_file()


def locate(store: Path, kind: str, key: str, folder: str | None = None) -> Path:
    """Return the folder of a stage, whatever readable name the study that made it gave it.

    ``folder`` (relative to the store) is the name to use if nobody has made it yet.
    """
    named = store / folder if folder else None
    if named is not None and named.is_dir():
        return named
    found = sorted((store / kind).glob(f"*-{key[:16]}"))
    if found:
        return found[0]
    return named if named is not None else store / kind / f"x-{key[:16]}"


def index(store: Path) -> dict[str, Path]:
    """Return the folders in a store by the first 16 digits of their keys, from one listing per kind."""
    found: dict[str, Path] = {}
    for kind in sorted(path for path in store.glob("*") if path.is_dir() and path.name not in _OTHER):
        for entry in os.scandir(kind):
            found.setdefault(entry.name[-16:], Path(entry.path))
    return found


def lock_path(store: Path, key: str) -> Path:
    """Return the lock file of a stage; it lies outside the stage's folder, which may be moved away."""
    return store / "locks" / f"{key[:16]}.lock"


def check_writable(folder: Path, key: str) -> None:
    """Raise StoreError unless files can be made in ``folder`` (which is created)."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_SMALL))  # a full disk takes a file's name still
    except OSError as error:
        raise StoreError(
            f"{key}={folder} cannot be written: {error.strerror or error}. "
            f"Choose another place: {key}=/a/writable/folder, or set PRUNELAB_HOME."
        ) from error
