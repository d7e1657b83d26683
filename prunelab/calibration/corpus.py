"""A corpus spec and a split give a list of documents, with the digest of what was read.

A spec is the content of one conf/calibration/*.yaml. Sources:

- ``embedded``: a text inside the package (prunelab/data/corpora), split 80/10/10 by position at paragraphs;
- ``hub``: files of a dataset repository at a pinned revision, one file per split (``files``), text in
  ``column``;
- ``text``: a local .txt, .jsonl or .parquet file, split like the embedded ones, or ``all`` of it;
- ``tokens``: an .npy file of token ids, read by `prunelab.calibration.collect`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunelab.calibration.hub import fetch
from prunelab.calibration.local import check_digest, check_file, divide, read_documents
from prunelab.errors import ConfigError, DataError, nearest
from prunelab.files import sha256
from prunelab.split import SPLITS, of_split

EMBEDDED = Path(__file__).parents[1] / "data" / "corpora"
SOURCES = ("embedded", "hub", "text", "tokens")


@dataclass(frozen=True)
class Corpus:
    """Documents of one split, the sha256 of the file they came from, and the hub commit (None elsewhere)."""

    documents: list[str]
    digest: str
    commit: str | None


def field(spec: Mapping, key: str) -> Any:
    """Return ``spec[key]``; a missing key is a ConfigError that names it."""
    if key not in spec:
        raise ConfigError(f"calibration.{key}", None, "set", f"The spec has {sorted(spec)}.")
    return spec[key]


def load_corpus(spec: Mapping, split: str) -> list[str]:
    """Return the documents of one split ('train', 'validation', 'test'; 'all' for local text) in their order.

    Raises DataError for a corpus that is missing, unreadable, empty or not the one of ``digest``;
    ConfigError for an unknown source or split.
    """
    return open_corpus(spec, split).documents


def open_corpus(spec: Mapping, split: str) -> Corpus:
    """Return documents, digest and commit of one split; see `load_corpus`."""
    source = str(field(spec, "source"))
    openers = {"embedded": _embedded, "hub": _hub, "text": _text}
    if source not in openers:
        raise ConfigError("calibration.source", source, ", ".join(SOURCES), nearest(source, SOURCES))
    if split not in SPLITS:
        raise ConfigError("calibration.split", split, ", ".join(SPLITS), nearest(split, SPLITS))
    corpus = openers[source](spec, split)
    if not any(document.strip() for document in corpus.documents):
        raise DataError(
            f"corpus {spec.get('name')!r}: split {split!r} is empty. The file may have too few paragraphs "
            "to be "
            "divided; use a longer text, or one file per role with split 'all'."
        )
    return corpus


@functools.lru_cache(maxsize=4)
def _embedded_raw(folder: Path, name: str) -> tuple[bytes, dict]:
    """Return (text as bytes, its row of corpora.json), the digest checked."""
    rows = json.loads((folder / "corpora.json").read_text(encoding="utf-8"))
    if name not in rows:
        raise ConfigError("calibration.id", name, ", ".join(rows), nearest(name, rows))
    path = folder / f"{name}.txt.xz"
    try:
        raw = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise DataError(
            f"embedded corpus {name!r}: {path} cannot be read: {error}. Reinstall prunelab."
        ) from error
    check_digest(hashlib.sha256(raw).hexdigest(), rows[name]["sha256"], f"embedded corpus {name!r} ({path})")
    return raw, rows[name]


def _embedded(spec: Mapping, split: str) -> Corpus:
    raw, row = _embedded_raw(EMBEDDED, str(field(spec, "id")))
    check_digest(row["sha256"], spec.get("digest"), f"embedded corpus {spec.get('name')!r}")
    start, end = (0, row["bytes"]) if split == "all" else row["splits"][split]
    return Corpus(raw[start:end].decode("utf-8").split(row["separator"]), row["sha256"], None)


def _hub(spec: Mapping, split: str) -> Corpus:
    name, repo, revision = str(spec.get("name")), str(field(spec, "id")), field(spec, "revision")
    if not revision:
        raise ConfigError("calibration.revision", revision, "a commit of the dataset", "Pin it: data move.")
    filename = of_split(field(spec, "files"), split)
    if not filename:
        raise DataError(f"corpus {name!r} has no split {split!r}; it has {sorted(field(spec, 'files'))}.")
    path, commit = fetch(name, repo, str(revision), str(filename))
    digest = sha256(path)
    check_digest(digest, of_split(spec.get("digest"), split), f"corpus {name!r} ({filename})")
    column, limit = str(spec.get("column") or "text"), of_split(spec.get("max_documents"), split)
    return Corpus(read_documents(path, column, f"corpus {name!r}", limit), digest, commit)


def _text(spec: Mapping, split: str) -> Corpus:
    what = f"corpus {spec.get('name')!r}"
    path = check_file(field(spec, "path"), what)
    if path.suffix == ".npy":
        raise DataError(
            f"{what}: {path.name} holds token ids, not text. Use calibration=tokens with this path."
        )
    digest = sha256(path)
    check_digest(digest, spec.get("digest"), f"{what} ({path})")
    documents = read_documents(path, str(spec.get("column") or "text"), what)
    return Corpus(divide(documents, split), digest, None)
