"""Write a stage's folder so that a kill at any moment leaves it either finished or resumable.

``spec.json`` is written first; progress goes to ``work/``; outputs are written to ``work/outputs`` and
renamed; ``record.json`` holds their digests; ``DONE`` is last. Whoever reads outputs checks the digests;
a folder that does not match is moved to ``quarantine/`` and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prunelab.errors import StoreError
from prunelab.store.layout import DONE, OUTPUTS, RECORD, SPEC, WORK, lock_path, write_atomic
from prunelab.store.record import Record, read_record

_CHUNK = 1 << 22


@contextmanager
def stage_lock(store: Path, key: str, waiting: Any = None) -> Iterator[None]:
    """Hold the lock of a stage; call ``waiting()`` once if another process has it."""
    path = lock_path(store, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def begin(folder: Path, spec: Mapping[str, Any]) -> Path:
    """Prepare the folder of a stage that is not finished; return its ``work`` folder, progress kept."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / SPEC, json.dumps(spec, indent=1, sort_keys=True).encode("utf-8"))
    shutil.rmtree(folder / OUTPUTS, ignore_errors=True)  # of an attempt that was killed before DONE
    work = folder / WORK
    shutil.rmtree(work / OUTPUTS, ignore_errors=True)
    (work / OUTPUTS).mkdir(parents=True, exist_ok=True)
    return work


def commit(folder: Path, record: Record) -> Record:
    """Move outputs into place, write record and DONE; return the record with the outputs' digests."""
    outputs = folder / WORK / OUTPUTS
    digests = {
        path.relative_to(outputs).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(outputs.rglob("*"))
        if path.is_file()
    }
    whole = Record(**{**record.__dict__, "outputs": digests})
    for path in outputs.rglob("*"):
        if path.is_file():
            _sync(path)
    outputs.replace(folder / OUTPUTS)
    write_atomic(folder / RECORD, whole.to_bytes())
    write_atomic(folder / DONE, f"{record.key}\n".encode("ascii"))
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return whole


def verified_record(folder: Path, key: str) -> Record:
    """Read a finished stage and check that record and outputs are what was written.

    Raises StoreError naming the file if a digest, a size or the key differs.
    """
    record = read_record(folder)
    if record.key != key:
        raise StoreError(f"{folder} holds key {record.key[:16]}, asked was {key[:16]}.")
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
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.replace(place)
    return place


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
