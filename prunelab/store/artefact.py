"""Write a stage's folder so that a kill at any moment leaves it either finished or resumable.

``spec.json`` is written first; progress goes to ``work/``; outputs are written to ``work/outputs`` and
renamed; ``record.json`` holds their digests; ``DONE`` is last. Whoever reads outputs checks the digests;
a folder that does not match is moved to ``quarantine/`` and computed again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prunelab.errors import StoreError
from prunelab.files import flush, make_folder, replace_file, sha256, share
from prunelab.lock import locked
from prunelab.store.layout import DONE, OUTPUTS, RECORD, SPEC, WORK, lock_path
from prunelab.store.record import Record, read_record

_OWNER = "owner"


def stage_lock(
    store: Path, key: str, what: str = "a stage", waiting: Callable[[str], None] | None = None
) -> AbstractContextManager[None]:
    """Hold the lock of a stage, ``what`` it is in words; while another process has it, call ``waiting(words)`` every second."""
    return locked(lock_path(store, key), what, waiting)


class Superseded(StoreError):
    """Another process has taken a stage over; what this one made of it is void."""


def begin(folder: Path, spec: Mapping[str, Any], owner: str = "") -> Path:
    """Prepare the folder of a stage that is not finished; return its ``work`` folder, progress kept.

    From here on the stage belongs to ``owner``: an earlier owner that still runs can commit nothing.
    """
    replace_file(folder / SPEC, json.dumps(spec, indent=1, sort_keys=True).encode("utf-8"))
    shutil.rmtree(folder / OUTPUTS, ignore_errors=True)  # of an attempt that was killed before DONE
    work = folder / WORK
    shutil.rmtree(work / OUTPUTS, ignore_errors=True)
    make_folder(work / OUTPUTS)
    replace_file(work / _OWNER, owner.encode("utf-8"))
    return work


def check_owner(folder: Path, owner: str) -> None:
    """Raise Superseded unless the unfinished stage in ``folder`` still belongs to ``owner``.

    The lock says so already where locks work between machines. Where they do not, a task that outlived its
    node's daemon may run beside the copy that was queued again; the copy, which began later, is the owner.
    """
    try:
        now = (folder / WORK / _OWNER).read_text(encoding="utf-8")
    except FileNotFoundError:
        now = "nobody: it is finished or was moved away"
    if now != owner:
        raise Superseded(f"{folder.name} was taken over by {now}; what {owner} made of it is not used.")


def commit(folder: Path, record: Record, owner: str = "") -> Record:
    """Move outputs into place, write record and DONE; return the record with the outputs' digests.

    Raises Superseded, and changes nothing, if the stage belongs to another owner by now.
    """
    check_owner(folder, owner)
    outputs = folder / WORK / OUTPUTS
    digests = {
        path.relative_to(outputs).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(outputs.rglob("*"))
        if path.is_file()
    }
    whole = Record(**{**record.__dict__, "outputs": digests})
    for path in outputs.rglob("*"):
        if path.is_file():
            share(path)
            flush(path)
    check_owner(folder, owner)
    outputs.replace(folder / OUTPUTS)
    replace_file(folder / RECORD, whole.to_bytes())
    replace_file(folder / DONE, f"{record.key}\n".encode("ascii"))
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return whole


def verified_record(folder: Path, key: str) -> Record:
    """Read a finished stage and check that record and outputs are what was written.

    Raises StoreError naming the file if a digest, a size or the key differs.
    """
    record = read_record(folder, key)
    for name, expected in record.outputs.items():
        path = folder / OUTPUTS / name
        if not path.is_file():
            raise StoreError(f"{path} is missing.")
        if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            raise StoreError(f"{path} does not match the digest in its record: it was cut or changed.")
    return record


def quarantine(store: Path, folder: Path) -> Path:
    """Move a damaged stage out of the way, kept for a look; return where it is now."""
    place = store / "quarantine" / f"{folder.name}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    make_folder(place.parent)
    folder.replace(place)
    return place
