"""Files that others read while they are written: whole or not there, shared as their folder is, named by any text.

Ground floor: both halves write files this way, and what a file's digest is stands here alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from prunelab.errors import StoreError

_NAME = 120  # characters of a file's name; file systems allow 255 bytes, and suffixes come after it
_ROOM = 1 << 20  # bytes; a disk with less is full


@contextmanager
def replacing(path: Path, *, sync: bool = True, refusals: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to, and rename it over ``path`` once that is done.

    A reader sees the old file or the new one, whole; after an error the old one stays. With ``sync`` the bytes are on
    disk before the rename, so that a crash of the machine leaves no empty file; without, writing is quicker. The
    folder is made. Raises StoreError with the place and the reason where the file system refuses (a full disk);
    ``refusals`` are the errors by which a library that writes says the same.
    """
    temporary = path.with_name(f".{path.name[:_NAME]}.{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        temporary.touch()
        usual = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        mode = stat.S_IMODE(temporary.stat().st_mode)
        if usual & ~mode:  # safetensors closes its files to all others, whatever the umask
            temporary.chmod(mode | usual)
        share(temporary)
        if sync:
            flush(temporary)
        temporary.replace(path)
    except (OSError, *refusals) as error:
        raise refused(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` to ``path`` as ``replacing`` does."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def flush(path: Path) -> None:
    """Bring a file's bytes to the disk; OSError if there is no room."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def make_folder(path: Path) -> Path:
    """Make a folder and those above it where they are missing, each shared as the one it lies in; return it."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path == path.parent:
            break
        path = path.parent
    for folder in reversed(missing):
        try:
            folder.mkdir()
        except FileExistsError as error:
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
            continue  # another process was quicker
        share(folder)
    return missing[0] if missing else path


def group_bits(folder: Path) -> int:
    """Return the group's rights in a folder, 0 for one that belongs to everybody (sticky, as /tmp is)."""
    mode = folder.stat().st_mode
    return 0 if mode & stat.S_ISVTX else mode & stat.S_IRWXG


def share(path: Path) -> None:
    """Give the group of the folder that ``path`` lies in the rights there that it has in the folder, whatever the umask.

    This is what lets several people use one store: ``chmod g+ws STORE`` once. What is somebody else's stays as it is.
    """
    above, here = path.parent.stat(), path.stat()
    group = group_bits(path.parent)
    if stat.S_ISDIR(here.st_mode):
        wanted = group | (above.st_mode & stat.S_ISGID if group else 0)
    else:
        wanted = group & (stat.S_IRGRP | stat.S_IWGRP)
    foreign = here.st_gid != above.st_gid
    if here.st_uid != os.geteuid() or not wanted or not (foreign or wanted & ~here.st_mode):
        return
    with suppress(PermissionError):
        if foreign:  # the folder lacks the setgid bit; rights that are there already would be another group's
            os.chown(path, -1, above.st_gid)
        path.chmod(stat.S_IMODE(here.st_mode) | wanted)


def open_shared(path: Path) -> IO[str]:
    """Open a text file to add to it; it and its folder are made where they are missing, and shared as ``share`` does."""
    make_folder(path.parent)
    new = not path.exists()
    file = path.open("a", encoding="utf-8")
    if new:
        share(path)
    return file


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_name(text: str) -> str:
    """Return any text as the name of a file: one folder deep, and another for another text.

    A text of letters, digits and ``._=+-`` that is not too long stays as it is; a digest tells the others apart.
    """
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).lstrip(".-")
    if plain == text and 0 < len(text) <= _NAME:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[:_NAME]}-{digest}".lstrip("-")


def refused(path: Path, error: Exception) -> StoreError:
    """Return what to say of a place where the file system refuses to write, and what to do about it."""
    folder = path if path.is_dir() else path.parent
    hint = f"Free space in {folder}" + ("" if is_full(error) else " or see to its permissions")
    words = getattr(error, "strerror", None) or error
    return StoreError(f"{path} cannot be written: {words}. {hint}, then run the command again.")


def is_full(error: BaseException) -> bool:
    """Say whether a write failed because a disk is full or a quota used up."""
    number = getattr(error, "errno", None)
    if number is None and (
        told := re.search(r"\(os error (\d+)\)", str(error))
    ):  # Rust's words, of safetensors
        number = int(told[1])
    return number in (errno.ENOSPC, errno.EDQUOT)


def full_place(error: OSError, candidates: Iterable[Path]) -> Path:
    """Return where there was no room: the file that the error names, else the first candidate that has no space left.

    A write to an open file names none. A quota shows nowhere: then it is the first candidate.
    """
    if isinstance(error.filename, str):
        return Path(error.filename)
    places = list(candidates)
    return next((place for place in places if _free(place) < _ROOM), places[0])


def _free(place: Path) -> float:
    try:
        space = os.statvfs(place)
    except OSError:
        return float("inf")
    return space.f_bavail * space.f_frsize
