"""Local files named in a config: checked before anything is queued, digested by content for the keys."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import platformdirs

from prunelab.errors import ConfigError
from prunelab.model_files import deciding_files

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
_EMBEDDED = Path(__file__).parents[1] / "data" / "models"  # a folder each
_CHUNK = 1 << 22


def check_text_file(key: str, path: object, source: str) -> None:
    """Raise ConfigError unless ``path`` is a readable, non-empty file of a kind that ``source`` can hold."""
    suffixes = (".npy",) if source == "tokens" else TEXT_SUFFIXES
    allowed = f"an existing file ending in {', '.join(suffixes)}"
    if not isinstance(path, str) or path == "???":
        raise ConfigError(key, path, allowed, f"Set it: {key}=/path/to/file{suffixes[0]}")
    place = Path(path).expanduser()
    if not place.is_file():
        raise ConfigError(key, path, allowed, f"No file at {place.absolute()}.")
    if place.suffix not in suffixes:
        raise ConfigError(key, path, allowed, f"{place.suffix or 'no suffix'} cannot be read as {source}.")
    if place.stat().st_size == 0:
        raise ConfigError(key, path, allowed, "The file is empty.")
    if not os.access(place, os.R_OK):
        raise ConfigError(key, path, allowed, "It cannot be read: check its permissions.")
    if place.suffix == ".npy":
        _check_npy(key, place)
    elif place.suffix in (".txt", ".jsonl"):
        with place.open("rb") as file:
            head = file.read(1 << 16)
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            # a multi-byte letter may be cut at the end of what was read
            if error.start < len(head) - 3:
                hint = f"Byte {error.start} is not UTF-8; convert it, e.g. iconv -f latin1 -t utf-8."
                raise ConfigError(key, path, "UTF-8 text", hint) from None


def _check_npy(key: str, path: Path) -> None:
    from numpy.lib import format as npy  # 0.1 s that only token files owe

    allowed = "an .npy file of integers, shape (n, length)"
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
            left = path.stat().st_size - file.tell()
    except ValueError as error:
        raise ConfigError(key, str(path), allowed, f"{path.name} is cut or no .npy file: {error}.") from None
    if dtype.hasobject or dtype.kind not in "iu" or len(shape) != 2:
        raise ConfigError(key, str(path), allowed, f"{path.name} holds {dtype} of shape {shape}.")
    if left < dtype.itemsize * shape[0] * shape[1]:
        raise ConfigError(
            key, str(path), allowed, f"{path.name} is cut: {left} bytes are too few for shape {shape}."
        )


def check_model_folder(key: str, path: object) -> None:
    """Raise ConfigError unless ``path`` is a folder with ``config.json`` and safetensors weights."""
    allowed = "a folder with config.json and *.safetensors"
    if not isinstance(path, str) or path == "???":
        raise ConfigError(key, path, allowed, f"Set it: {key}=/path/to/checkpoint")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(key, path, allowed, f"No folder at {folder.absolute()}.")
    if not (folder / "config.json").is_file():
        raise ConfigError(key, path, allowed, "config.json is missing.")
    if not any(folder.glob("*.safetensors")):
        hint = "Pickled weights (*.bin) are never loaded; save_pretrained(..., safe_serialization=True) converts them."
        raise ConfigError(key, path, allowed, hint)


def model_name(model: Mapping[str, Any]) -> str:
    """Return a name for a model that was given none: its folder's or its repository's."""
    place = Path(str(model.get("id")))
    if model.get("source") == "local" and place.parent.name == "snapshots":  # of the hub's cache
        return place.parent.parent.name.rpartition("--")[2]
    return place.name or str(model.get("source"))


def input_widths(model: Mapping[str, Any]) -> list[int]:
    """Return the numbers of inputs that linear layers of ``model`` have, by its config.json; [] where none is at hand."""
    folders = {"embedded": _EMBEDDED / str(model["id"]), "local": Path(str(model["id"])).expanduser()}
    widths: set[int] = set()
    with suppress(KeyError, OSError, ValueError, TypeError, ZeroDivisionError, AttributeError):
        found = json.loads((folders[model["source"]] / "config.json").read_text(encoding="utf-8"))
        found = found.get("text_config") or found
        width, heads = found["hidden_size"], found["num_attention_heads"]
        widths.add(width)
        widths.add(heads * (found.get("head_dim") or width // heads))
        widths.add(found.get("intermediate_size") or found["ffn_dim"])
    return sorted(widths)


def content_digest(path: str | Path) -> str:
    """Return the sha256 of a file, or of all files of a model folder that decide numbers: weights, settings, tokenizer, code.

    Contents count, never paths. Digests of unchanged files (same size, time and inode) are remembered
    in the user's cache, since weights may be many gigabytes.
    """
    place = Path(path).expanduser().resolve()
    if place.is_file():
        return _file_digest(place)
    whole = hashlib.sha256()
    for file in deciding_files(place):
        whole.update(f"{file.relative_to(place).as_posix()}\0{_file_digest(file)}\0".encode())
    return whole.hexdigest()


def _file_digest(file: Path) -> str:
    stat = file.stat()
    return _remembered(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=1024)
def _remembered(path: str, size: int, mtime: int, inode: int) -> str:
    name = hashlib.sha256(json.dumps([path, size, mtime, inode]).encode()).hexdigest()
    note = Path(platformdirs.user_cache_dir("prunelab")) / "digests" / name
    if size > _CHUNK and note.is_file():
        known = note.read_text(encoding="ascii").strip()
        if len(known) == 64:
            return known
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if size > _CHUNK:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            partial = note.with_suffix(f".{os.getpid()}")
            partial.write_text(digest.hexdigest(), encoding="ascii")
            partial.replace(note)
        except OSError:
            pass  # a cache that cannot be written costs time, not correctness
    return digest.hexdigest()
