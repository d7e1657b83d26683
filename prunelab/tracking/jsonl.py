"""metrics.jsonl: one JSON object a line, on disk before ``write`` returns. The source of truth.

A killed process leaves at most one torn line, the last; readers drop it and writers mend it, so a resumed
stage appends to the same file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from prunelab.files import open_shared, refused


class JsonlWriter:
    """Appends rows to ``path``; each row is flushed and fsynced. Usable as a context manager.

    The file and its folder are made, and shared as their folder is. Raises StoreError where they cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            _cut_torn_tail(self.path)
            self._file = open_shared(self.path)
        except OSError as error:
            raise refused(self.path, error) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row. Values that JSON does not know (paths, NumPy scalars) become numbers or text."""
        line = json.dumps(dict(row), default=_plain, ensure_ascii=False) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise refused(self.path, error) from error

    def close(self) -> None:
        with suppress(OSError):  # every row was flushed; what a full disk did not take was told by ``write``
            self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Every whole row of ``path`` in order, [] where there is no file. Torn or foreign lines are dropped."""
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    return list(_rows(text.split(b"\n")))


def _rows(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:  # torn by a kill, in the middle of a UTF-8 character too
            continue
        if isinstance(row, dict):
            yield row


def _cut_torn_tail(path: Path) -> None:
    """Drop bytes after the last newline: appended to, they would spoil the next row as well."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)  # NumPy and torch scalars, without importing either
    return item() if callable(item) else str(value)
