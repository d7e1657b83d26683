"""Token sets: what a stage calibrates or tests on, with a digest; written as .npy plus .json."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunelab.errors import DataError
from prunelab.files import replace_file, replacing

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Windows of token ids.

    ``tokens`` int32 (n, seq_len); ``digest`` of them (`token_digest`); ``role`` mask, reconstruction, held_out or test;
    ``source`` plain data that says where they came from (corpus, split, digests, sampler, joiner, seed,
    tokenizer).
    """

    tokens: np.ndarray
    digest: str
    role: str
    source: dict


def token_digest(tokens: np.ndarray) -> str:
    """Return sha256 over the shape (two little-endian int64) and the row-major little-endian int32 values."""
    n, seq_len = tokens.shape
    return hashlib.sha256(struct.pack("<qq", n, seq_len) + tokens.astype("<i4").tobytes()).hexdigest()


def check_range(tokens: np.ndarray, vocab_size: int, what: str) -> None:
    """Raise DataError unless every id lies in [0, vocab_size)."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"{what}: token ids must lie in 0..{vocab_size - 1} (the model's vocabulary), found "
            f"{low}..{high}. "
            "They come from another tokenizer; use the one of the model."
        )


def build_token_set(tokens: np.ndarray, role: str, source: dict, vocab_size: int) -> TokenSet:
    """Check ids (n, seq_len) against the vocabulary and freeze a copy of them."""
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.dtype.kind not in "iu":
        raise DataError(
            f"token set: expected integers of shape (n, seq_len), found {tokens.dtype} {tokens.shape}."
        )
    check_range(tokens, vocab_size, f"token set for role {role!r}")
    frozen = np.array(tokens, dtype=np.int32, order="C")
    frozen.setflags(write=False)
    return TokenSet(frozen, token_digest(frozen), role, source)


def read_npy(path: Path, what: str) -> np.ndarray:
    """Return the integers (n, length) of an .npy file, memory-mapped read-only; pickles are never loaded."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{what}: {path} is not a complete .npy file of integers: {error}. "
            "Write it with numpy.save(path, ids.astype('int32')); arrays of Python objects are never loaded."
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{what}: {path} is an .npz archive; save one array as .npy.")
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{what}: {path} holds {array.dtype}; token ids are integers, e.g. ids.astype('int32')."
        )
    if array.ndim != 2:
        raise DataError(
            f"{what}: {path} has shape {array.shape}; expected (n, length): one row per sequence."
        )
    if 0 in array.shape:
        raise DataError(f"{what}: {path} has shape {array.shape}: it holds no tokens.")
    return array


def save_tokens(token_set: TokenSet, path: Path) -> None:
    """Write ``path`` (.npy) and beside it the same name with .json (schema, digest, role, source)."""
    rows = {
        "schema": SCHEMA,
        "digest": token_set.digest,
        "role": token_set.role,
        "shape": list(token_set.tokens.shape),
        "source": token_set.source,
    }
    text = json.dumps(rows, indent=1, sort_keys=True) + "\n"
    with replacing(path) as temporary, temporary.open("wb") as file:  # numpy would add a suffix to a name
        np.save(file, token_set.tokens.astype("<i4"), allow_pickle=False)
    replace_file(path.with_suffix(".json"), text.encode())


def load_tokens(path: Path) -> TokenSet:
    """Read what `save_tokens` wrote; DataError if a file is missing, damaged or not the one of its digest."""
    note = path.with_suffix(".json")
    try:
        row = json.loads(note.read_text(encoding="utf-8"))
        schema, digest, role, source = row["schema"], row["digest"], row["role"], row["source"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"token set {note} cannot be read: {error!r}. Delete the folder; it is made again."
        ) from error
    if schema != SCHEMA:
        raise DataError(f"token set {note} has schema {schema}; this version reads schema {SCHEMA}.")
    tokens = np.array(read_npy(path, "token set"))
    tokens.setflags(write=False)
    if token_digest(tokens) != digest:
        raise DataError(
            f"token set {path} has changed: expected sha256 {digest}, found {token_digest(tokens)}."
        )
    return TokenSet(tokens, digest, role, source)
