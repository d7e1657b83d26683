"""W&B's run folders and the transaction logs in them (LevelDB's log format, as wandb 0.31 writes it)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER, _BLOCK, _CHUNK = 7, 32768, struct.Struct("<IHB")  # checksum, length, kind of chunk
_FULL, _FIRST, _LAST = 1, 2, 4


@dataclass(frozen=True)
class Fragment:
    """One start of a run as its folder has it. A torn one holds no run; ``ended`` says it has an exit record."""

    folder: Path
    file: Path
    run_id: str
    torn: bool
    ended: bool
    rows: int

    @property
    def offline(self) -> bool:
        """True if the folder is that of an offline run."""
        return self.folder.name.startswith("offline-")

    @property
    def marked(self) -> bool:
        """True if the SDK has marked the file as synced."""
        return self.file.with_name(self.file.name + ".synced").exists()


def run_files(tracking: Path) -> dict[str, list[Path]]:
    """Return the transaction logs below a study's tracking folder by run id, each list oldest first."""
    found: dict[str, list[Path]] = {}
    for file in tracking.glob("wandb/*run-*/run-*.wandb"):
        found.setdefault(file.stem.removeprefix("run-"), []).append(file)
    # offline-run-20260101_101112-id and run-20260101_101112-id: the time is what orders them
    return {
        run_id: sorted(files, key=lambda file: file.parent.name.removeprefix("offline-"))
        for run_id, files in found.items()
    }


def read_fragment(file: Path) -> Fragment:
    """Read what a transaction log holds; whatever is cut off or damaged ends it."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    run, ended, rows = False, False, 0
    for payload in payloads(file.read_bytes()):
        kind = Record.FromString(payload).WhichOneof("record_type")
        run, ended, rows = run or kind == "run", ended or kind == "exit", rows + (kind == "history")
    return Fragment(file.parent, file, file.stem.removeprefix("run-"), not run, ended, rows)


def payloads(data: bytes) -> Iterator[bytes]:
    """Yield the records of a transaction log as serialised protobuf; nothing if it is not one."""
    if data[:4] != b":W&B":
        return
    at, whole = _HEADER, b""
    while at + _CHUNK.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK.size:  # padding: a chunk's header never crosses a block
            at += left
            continue
        checksum, length, kind = _CHUNK.unpack_from(data, at)
        body = data[at + _CHUNK.size : at + _CHUNK.size + length]
        if kind == 0 or len(body) < length or zlib.crc32(bytes([kind]) + body) != checksum:
            return
        whole = body if kind in (_FULL, _FIRST) else whole + body
        if kind in (_FULL, _LAST):
            yield whole
        at += _CHUNK.size + length
