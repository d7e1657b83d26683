"""Locks between processes and machines, which say who holds them, on file systems with and without locks.

A lock is the kernel's (``flock``): it ends with its holder. Where a file system has none (some Lustre and NFS mounts
answer ENOLCK, EOPNOTSUPP or ENOSYS) it is a lease: a file whose holder touches it every 20 s; whoever has seen it
untouched for 60 s takes it over, be the holder dead or its machine. ``PRUNELAB_LOCKS=lease`` takes leases from the
start, for file systems where ``flock`` seems to work and holds on one machine only; all who share a store set the same.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from prunelab.errors import ConfigError, StoreError
from prunelab.files import group_bits, make_folder, replace_file, share

LEASE_S = 60.0
SETTING = "PRUNELAB_LOCKS"
SETTINGS = ("auto", "lease")
_NO_FLOCK = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
_SAID_S = (2.0, 60.0)  # after the first seconds of waiting, and how often from then on


@contextmanager
def locked(
    path: Path, what: str, waiting: Callable[[str], None] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lock at ``path`` on ``what``; the folder is made.

    While another process has it, ``waiting(words)`` is called every second, and the words are printed after two seconds
    and every minute. Raises StoreError, naming the holder, after ``timeout`` seconds, or if the lock cannot be made.
    """
    began, next_said = time.monotonic(), _SAID_S[0]
    try:
        lock, held = _first_try(path)
        while not held:
            waited = time.monotonic() - began
            words = f"waiting for {what}: {holder(path)}"
            if timeout is not None and waited >= timeout:
                raise StoreError(
                    f"{what} is in use: {holder(path)}. Run the command again when that is over."
                )
            if waited >= next_said:
                print(f"{words} ({path})", flush=True)
                next_said = waited + _SAID_S[1]
            if waiting is not None:
                waiting(words)
            held = _try(lock, 1.0)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be locked: {error.strerror or error}. See to the permissions of {path.parent}: a store of "
            "several users needs `chmod -R g+rwX` and `chmod g+s` on its folders."
        ) from error
    note = _note(path)
    try:
        with suppress(StoreError):  # who it is helps others and decides nothing
            replace_file(note, json.dumps(_myself()).encode("utf-8"), sync=False)
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def is_locked(path: Path) -> bool:
    """Say whether some process holds the lock at ``path``; one that this user may not try is judged by its holder's note."""
    if not path.exists() and not _lease_path(path).exists():
        return False
    try:
        lock, held = _first_try(path)
    except OSError:
        return _note(path).exists()
    if held:
        lock.release()
        return False
    if isinstance(lock, SoftFileLease):
        with suppress(OSError):
            return time.time() - _lease_path(path).stat().st_mtime < LEASE_S
    return True


def holder(path: Path) -> str:
    """Return who holds the lock at ``path``, and since when, as far as they have said."""
    try:
        note = json.loads(_note(path).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["since"]))
        words = f"{note['user']} holds it on {note['host']} (process {note['pid']}) since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        words = "another process holds it"
    if _lease_path(path).exists():
        words += f"; if that has died, it is taken over after {LEASE_S:g} s"
    return words


def _first_try(path: Path) -> tuple[BaseFileLock, bool]:
    """Return the lock that the file system can give, and whether it is held now. OSError if there can be none.

    A waiter goes on with the same object: it is what has seen when a lease was touched last.
    """
    setting = os.environ.get(SETTING) or SETTINGS[0]
    if setting not in SETTINGS:
        raise ConfigError(SETTING, setting, " | ".join(SETTINGS))
    make_folder(path.parent)
    mode = 0o644 | (group_bits(path.parent) & 0o060)
    if setting == "auto":
        lock = FileLock(path, mode=mode, fallback_to_soft=False)
        try:
            return lock, _shared(path, _try(lock, 0.0))
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
    lease = SoftFileLease(_lease_path(path), mode=mode, lease_duration=LEASE_S)
    return lease, _shared(_lease_path(path), _try(lease, 0.0))


def _shared(path: Path, held: bool) -> bool:
    """Give a lock that is held to the group of its folder; return ``held``."""
    if held:
        with suppress(FileNotFoundError):
            share(path)
    return held


def _try(lock: BaseFileLock, patience: float) -> bool:
    """Try for ``patience`` seconds to hold a lock; say whether it is held."""
    try:
        lock.acquire(timeout=patience, poll_interval=0.2)
    except Timeout:
        return False
    return True


def _lease_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lease")


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def _myself() -> dict[str, object]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = f"user {os.getuid()}"
    return {"user": user, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
