"""Texts in files: .txt, .jsonl, .parquet, each also the format of hub corpora. Every problem is a DataError.

A .txt file is UTF-8 (a byte order mark is dropped, CRLF becomes LF); its documents are its paragraphs: parts
between blank lines or, where there is no blank line, lines. Joining the documents with that separator gives
the text back.
"""

from __future__ import annotations

import bisect
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prunelab.errors import DataError, nearest
from prunelab.split import SHARES
from prunelab.text_row import wrong_row

MAX_BYTES = 4 * 2**30
SUFFIXES = (".txt", ".jsonl", ".parquet")


def check_file(path: str | Path | None, what: str) -> Path:
    """Return ``path`` if it is an absolute path of a readable, non-empty file of at most 4 GiB."""
    if not path:
        raise DataError(f"{what} needs a file, but its path is {path!r}. Set path to an absolute path.")
    place = Path(path).expanduser()
    if not place.is_absolute():
        raise DataError(
            f"{what}: path {str(path)!r} is relative; jobs run in other folders. Use "
            f"{str(place.absolute())!r}."
        )
    if place.is_dir():
        raise DataError(f"{what}: {place} is a folder. Name one file.")
    if not place.is_file():
        near = nearest(place.name, [p.name for p in place.parent.glob("*")]) if place.parent.is_dir() else ""
        raise DataError(f"{what}: there is no file {place}. {near}".rstrip())
    size = place.stat().st_size
    if size == 0:
        raise DataError(f"{what}: {place} is empty (0 bytes).")
    if size > MAX_BYTES:
        raise DataError(
            f"{what}: {place} has {size / 2**30:.1f} GiB; at most {MAX_BYTES / 2**30:.0f} GiB are read. "
            "A calibration set needs a few MB: cut a piece (head -c 100M) or tokenise it into an .npy file."
        )
    return place


def check_digest(found: str, expected: str | None, what: str) -> None:
    """Raise DataError unless ``expected`` is None or equals ``found``."""
    if expected is not None and found != expected:
        raise DataError(
            f"{what} has changed: expected sha256 {expected}, found {found}. "
            "Restore the file, or set digest to the new value (results will not be comparable with the old "
            "ones)."
        )


def _unpacked(path: Path) -> BinaryIO:
    """Open a file for reading bytes, unpacked if its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _too_much(path: Path, what: str) -> DataError:
    return DataError(f"{what}: {path} unpacks to more than {MAX_BYTES / 2**30:.0f} GiB. Cut a piece of it.")


def _decode(raw: bytes, path: Path, what: str, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what}: {path} is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}{where}. "
            f"Convert it, for example `iconv -f latin1 -t utf-8 {path.name}`."
        ) from error


def _read_text(path: Path, what: str) -> str:
    """Return the whole text of a UTF-8 file."""
    try:
        with _unpacked(path) as handle:
            raw = handle.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{what}: {path} cannot be read: {error}. Copy or fetch it again.") from error
    if len(raw) > MAX_BYTES:
        raise _too_much(path, what)
    return _decode(raw, path, what, "").replace("\r\n", "\n")


def _lines(path: Path, what: str) -> Iterator[bytes]:
    """Yield the lines of a file one by one: a C4 shard unpacks to nearly 1 GB, as one string to several."""
    seen = 0
    try:
        with _unpacked(path) as handle:
            while line := handle.readline(MAX_BYTES + 1):
                seen += len(line)
                if seen > MAX_BYTES:
                    raise _too_much(path, what)
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{what}: {path} cannot be read: {error}. Copy or fetch it again.") from error


def _read_jsonl(path: Path, column: str, what: str, limit: int | None) -> list[str]:
    documents = []
    for number, raw in enumerate(_lines(path, what), start=1):
        if len(documents) == limit:
            break
        line = _decode(raw, path, what, f" of line {number}")
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{what}: {path} line {number} is not JSON: {error}.") from error
        if (reason := wrong_row(row, column)) is not None:
            raise DataError(f"{what}: {path} line {number}: {reason}")
        documents.append(row[column])
    return documents


def _read_parquet(path: Path, column: str, what: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        schema = parquet.read_schema(path)
        if column not in schema.names:
            near = nearest(column, schema.names)
            raise DataError(
                f"{what}: {path} has no column {column!r}; it has {schema.names}. Set column. {near}".rstrip()
            )
        kind = schema.field(column).type
        if pyarrow.types.is_dictionary(kind):  # a column of categories: the same text, stored once
            kind = kind.value_type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise DataError(f"{what}: column {column!r} of {path} holds {kind}, not text.")
        documents = parquet.read_table(path, columns=[column]).column(column).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{what}: {path} is not a readable parquet file: {error}. Fetch it again.") from error
    for number, document in enumerate(documents, start=1):
        if (reason := wrong_row({column: document}, column)) is not None:
            raise DataError(f"{what}: {path} row {number}: {reason}")
    return documents


def read_documents(path: Path, column: str, what: str, limit: int | None = None) -> list[str]:
    """Return the documents of a .txt, .jsonl (also .json), or .parquet file in order, at most ``limit``.

    Raises DataError for another suffix, for bytes that are not UTF-8, for a missing field, and for a file
    without any text.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".txt"):
        text = _read_text(path, what)
        documents = text.split("\n\n" if "\n\n" in text.strip("\n") else "\n")
    elif name.endswith((".jsonl", ".json")):
        documents = _read_jsonl(path, column, what, limit)
    elif name.endswith(".parquet"):
        documents = _read_parquet(path, column, what)
    else:
        raise DataError(
            f"{what}: {path.name} has an unknown ending; allowed are {', '.join(SUFFIXES)} (and .npy)."
        )
    if not any(document.strip() for document in documents):
        raise DataError(f"{what}: {path} holds no text, only blanks ({len(documents)} documents).")
    return documents[:limit]


def divide(documents: list[str], split: str) -> list[str]:
    """Return the documents of one split: 80/10/10 % of the characters by position, 'all' for everything.

    A document belongs to the split in which its last character lies, so splits never share a document.
    """
    if split == "all":
        return documents
    total, seen, chosen = sum(map(len, documents)), 0, []
    ends = [share * total for _, share in SHARES[:-1]]
    for document in documents:
        seen += len(document)
        if SHARES[bisect.bisect_left(ends, seen)][0] == split:
            chosen.append(document)
    return chosen
