"""Logs of jobs: where they are, how a process's prints come there, and what they said last."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from prunelab.files import file_name, open_shared, refused
from prunelab.plan.study import Plan

_TAIL = 4000  # bytes


def log_path(plan: Plan, job: str) -> Path:
    """Return a job's log file."""
    return plan.folder / "logs" / f"{file_name(job)}.log"


def opened_log(path: Path) -> IO[str]:
    """Open a log to add to it, made and shared as its folder is; StoreError where that is impossible."""
    try:
        return open_shared(path)
    except OSError as error:
        raise refused(path, error) from error


def log_to(path: Path, what: str) -> None:
    """Send all that this process and its libraries print to a job's log, from now on; StoreError if there can be none."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the log before this one is on a full disk
            stream.flush()
    with opened_log(path) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with suppress(OSError):
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {what}", flush=True)


def last_words(paths: Iterable[Path]) -> str:
    """Return the end of what some files say, in their order; files that are not there say nothing."""
    texts = []
    for path in paths:
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                texts.append(file.read().decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(texts)


def last_line(paths: Iterable[Path]) -> str:
    """Return the last line that is not empty of what some files say."""
    lines = [line.strip() for line in last_words(paths).splitlines()]
    return next((line for line in reversed(lines) if line), "")
