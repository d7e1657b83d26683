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

from prunelab.errors import ConfigError, ModelError, StoreError, nearest
from prunelab.family import POSITIONS, family_named, load_families, read_family_file
from prunelab.files import replace_file, sha256
from prunelab.model_files import deciding_files
from prunelab.text_row import wrong_row

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
_PRUNED = (
    "pruned"  # the entry of a config.json for a model with other widths in every block (models/shape.py)
)
_EMBEDDED = Path(__file__).parents[1] / "data" / "models"  # a folder each
_CHUNK = 1 << 22
_LOOKED_AT = 4 << 20  # bytes of rows that planning parses: a tenth of a second


def check_text_file(key: str, path: object, source: str, column: str = "text") -> None:
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
    if place.suffix == ".jsonl":
        _check_rows(key, place, column)


def _check_rows(key: str, path: Path, column: str) -> None:
    """Raise ConfigError for the first of a file's first rows that has no text; the job looks at all of them."""
    with path.open("rb") as file:
        for number, line in enumerate(file.readlines(_LOOKED_AT), start=1):
            if not line.strip():
                continue
            try:
                reason = wrong_row(
                    json.loads(line.decode("utf-8", errors="replace").removeprefix("\ufeff")), column
                )
            except ValueError as error:
                reason = f"it is not JSON: {error}."
            if reason is not None:
                raise ConfigError(
                    key,
                    str(path),
                    f"a JSON object with text in {column!r} on each line",
                    f"Line {number}: {reason}",
                )


def token_shape(path: Path) -> tuple[int, int]:
    """Return (rows, tokens of a row) of a token file, from its header."""
    (rows, columns), _, _ = _read_header(path)
    return rows, columns


def _read_header(path: Path) -> tuple[tuple[int, ...], Any, int]:
    """Return shape, dtype and the bytes that follow the header; raises ValueError where there is none."""
    from numpy.lib import format as npy  # 0.1 s that only token files owe

    with path.open("rb") as file:
        read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype, path.stat().st_size - file.tell()


def _check_npy(key: str, path: Path) -> None:
    allowed = "an .npy file of integers, shape (n, length)"
    try:
        shape, dtype, left = _read_header(path)
    except ValueError as error:
        raise ConfigError(key, str(path), allowed, f"{path.name} is cut or no .npy file: {error}.") from None
    if dtype.hasobject or dtype.kind not in "iu" or len(shape) != 2:
        raise ConfigError(key, str(path), allowed, f"{path.name} holds {dtype} of shape {shape}.")
    if left < dtype.itemsize * shape[0] * shape[1]:
        raise ConfigError(
            key, str(path), allowed, f"{path.name} is cut: {left} bytes are too few for shape {shape}."
        )


def check_model_folder(key: str, path: object, family: str | None = None) -> None:
    """Raise ConfigError unless ``path`` is a folder with ``config.json`` and safetensors weights of a known family.

    ``family``: file of a family of one's own.
    """
    allowed = "a folder with config.json and *.safetensors"
    if not isinstance(path, str) or path == "???":
        raise ConfigError(key, path, allowed, f"Set it: {key}=/path/to/checkpoint")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(key, path, allowed, f"No folder at {folder.absolute()}.")
    if not (folder / "config.json").is_file():
        raise ConfigError(key, path, allowed, "config.json is missing.")
    gone = [file.name for file in deciding_files(folder) if not file.exists()]
    if gone:
        target = (folder / gone[0]).resolve()
        hint = f"{', '.join(gone)}: a link to what is not there ({target}). Copy the file, or mend the link."
        raise ConfigError(key, path, allowed, hint)
    if not any(folder.glob("*.safetensors")):
        hint = "Pickled weights (*.bin) are never loaded; save_pretrained(..., safe_serialization=True) converts them."
        raise ConfigError(key, path, allowed, hint)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(key, path, allowed, f"config.json is no JSON: {error}.") from None
    if not isinstance(config, dict):
        raise ConfigError(key, path, allowed, f"config.json holds {type(config).__name__}, not an object.")
    _check_architecture(key, path, config, family)


# its classes name the same modules, but loading the text part of such a file leaves weights at random values, silently
TEXT_PART = (
    'python -c "from transformers import AutoModelForCausalLM as C, AutoModelForImageTextToText as M; '
    "m = M.from_pretrained('{0}'); t = C.from_config(m.config.text_config); "
    "t.model, t.lm_head = m.model.language_model, m.lm_head; t.save_pretrained('{0}-text')\" "
    "&& cp {0}/tokenizer* {0}-text"
)


def check_family_file(key: str, path: str) -> None:
    """Raise ConfigError unless ``path`` is a YAML file that describes a family."""
    try:
        read_family_file(path)
    except ModelError as error:
        raise ConfigError(key, path, "a YAML file with the fields of a family", str(error)) from None


def _check_architecture(key: str, path: str, config: Mapping[str, Any], family: str | None) -> None:
    """Raise ConfigError for a model that no family can walk: by its config.json, before a job finds out."""
    if config.get("quantization_config"):
        raise ConfigError(
            key, path, "float weights", "These are quantised; prune the checkpoint they were made from."
        )
    families = load_families() if family is None else (read_family_file(family),)
    kind, known = config.get("model_type"), sorted({kind for one in families for kind in one.model_types})
    if kind in known:
        blocks = config[_PRUNED].get("blocks") if isinstance(config.get(_PRUNED), Mapping) else None
        if isinstance(blocks, list) and any(isinstance(one, Mapping) and one.get("picked") for one in blocks):
            hint = (
                "Layers of this one pick single inputs or outputs, since its removed rows and columns are gone. It runs and "
                "generates (prunelab.load_model), but is not pruned again: export it without --compact and prune that."
            )
            raise ConfigError(key, path, "a model of whole layers", hint)
        return
    text = config.get("text_config")
    if isinstance(text, Mapping) and text.get("model_type") in known:
        hint = f"It reads more than text. Save its text part and take that folder: {TEXT_PART.format(path)}"
    else:
        hint = (
            nearest(str(kind), known) or "A family of your own is one YAML file: model.family=/path/mine.yaml"
        )
    raise ConfigError(f"{key}: model_type", kind, ", ".join(known), hint)


def positions(model: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model takes: ``max_len``, or what a local model's config.json says; None if nothing does."""
    if model["max_len"] is not None or model["source"] != "local":
        return model["max_len"]
    with suppress(OSError, ValueError, AttributeError):
        config = json.loads((Path(model["id"]) / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        return next((config[key] for key in POSITIONS if isinstance(config.get(key), int)), None)
    return None


def model_name(model: Mapping[str, Any]) -> str:
    """Return a name for a model that was given none: its folder's or its repository's."""
    place = Path(str(model.get("id")))
    if model.get("source") == "local" and place.parent.name == "snapshots":  # of the hub's cache
        return place.parent.parent.name.rpartition("--")[2]
    return place.name or str(model.get("source"))


def input_widths(model: Mapping[str, Any]) -> list[int]:
    """Return the numbers of inputs that linear layers of ``model`` have, by its config.json; [] where none is at hand."""
    widths: set[int] = set()
    with suppress(KeyError, OSError, ValueError, TypeError, ZeroDivisionError, AttributeError):
        found = text_config(model)
        width, heads = (first_of(found, keys) for keys in (WIDTH_KEYS, HEADS_KEYS))
        of_head = found.get("head_dim") or width // heads
        widths.add(width)
        # of a model with other widths in every block, the entry "pruned" says which (models/shape.py)
        blocks = (found.get(_PRUNED) or {}).get("blocks") or [{}]
        widths |= {block.get("heads", heads) * of_head for block in blocks}
        # where none says, it is four times the width, which divides no worse
        widths |= {block["ffn"] if block.get("ffn") else first_of(found, _INNER) for block in blocks}
    return sorted(width for width in widths if isinstance(width, int) and width)


def widths(model: Mapping[str, Any]) -> list[int]:
    """Return the numbers of inputs that linear layers of ``model`` have, and the width of all key-value heads, be they a part
    of a joint map; [] where no config is at hand."""
    found = set(input_widths(model))
    with suppress(KeyError, OSError, ValueError, TypeError, ZeroDivisionError, AttributeError):
        config = text_config(model)
        heads = first_of(config, HEADS_KEYS)
        of_head = config.get("head_dim") or first_of(config, WIDTH_KEYS) // heads
        blocks = (config.get(_PRUNED) or {}).get("blocks") or [{}]
        found |= {
            block.get("kv_heads", config.get("num_key_value_heads") or heads) * of_head for block in blocks
        }
    return sorted(width for width in found if isinstance(width, int) and width)


def neurons(model: Mapping[str, Any]) -> tuple[int, ...]:
    """Return how many neurons each width of block that ``model`` has holds, by its config.json; () where none says it."""
    with suppress(KeyError, OSError, ValueError, TypeError, AttributeError):
        found = text_config(model)
        blocks = (found.get(_PRUNED) or {}).get("blocks") or [{}]
        widths = {block["ffn"] if block.get("ffn") else first_of(found, _INNER) for block in blocks}
        return tuple(sorted(width for width in widths if isinstance(width, int)))
    return ()


def n_blocks(model: Mapping[str, Any]) -> int | None:
    """Return how many blocks ``model`` has, by its config.json; None where none is at hand."""
    with suppress(KeyError, OSError, ValueError, TypeError, AttributeError):
        found = first_of(text_config(model), _BLOCKS)
        return found if isinstance(found, int) else None
    return None


def model_folder(model: Mapping[str, Any]) -> Path:
    """Return the folder of an embedded or local model; KeyError for another source."""
    folders = {"embedded": _EMBEDDED / str(model["id"]), "local": Path(str(model["id"])).expanduser()}
    return folders[model["source"]]


def text_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of an embedded or local model, of its text part where it has several; a random model's config."""
    if model["source"] == "random":
        return dict(family_named(str(model["id"])).random)
    found = json.loads((model_folder(model) / "config.json").read_text(encoding="utf-8"))
    return found.get("text_config") or found


# what architectures call their number of blocks, the width of the hidden states, their heads, and the width inside the MLP
_BLOCKS = ("num_hidden_layers", "n_layer", "num_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "n_embed")
HEADS_KEYS = ("num_attention_heads", "n_head")
_INNER = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")


def first_of(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """Return the first of ``keys`` that ``config`` gives a value; KeyError if there is none."""
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    raise KeyError(keys[0])


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
    digest = sha256(Path(path))
    if size > _CHUNK:
        with suppress(OSError, StoreError):  # a cache that cannot be written costs time, not correctness
            replace_file(note, digest.encode("ascii"), sync=False)
    return digest
