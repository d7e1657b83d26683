"""Cut the embedded corpora out of a folder of raw texts.

    python experiments/embedded/build_corpora.py RAW_FOLDER

``RAW_FOLDER`` holds ``austen.txt.gz``, ``kjv.txt.gz``, ``jargon.txt.gz`` and ``pydocs.txt.gz`` (UTF-8; where
they come from is in ``prunelab/data/corpora/LICENSES.md``). Each is cut at the last paragraph boundary
before 2.5 MB and divided by position into train, validation and test (80/10/10), again at paragraph
boundaries, so that no sentence stands in two splits. Written: ``NAME.txt.xz`` and ``corpora.json`` (sha256
of the raw text, byte offsets). The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import sys
from pathlib import Path

CORPORA = Path(__file__).parents[2] / "prunelab" / "data" / "corpora"
MAX_BYTES = 2_500_000
SHARES = {"train": 0.8, "validation": 0.9, "test": 1.0}  # cumulative

# name: (paragraph separator, what it is). KJV has one verse a line and no blank lines.
DOMAINS = {
    "austen": (b"\n\n", "novels of Jane Austen"),
    "kjv": (b"\n", "King James Bible without verse numbers"),
    "jargon": (b"\n\n", "The Jargon File 4.4.7"),
    "pydocs": (b"\n\n", "Python 3.11 documentation sources"),
}


def boundary(raw: bytes, separator: bytes, at: int) -> int:
    """Return the end of the last separator that starts before byte ``at``."""
    found = raw.rfind(separator, 0, at)
    if found < 0:
        raise SystemExit(f"no paragraph boundary before byte {at}")
    return found + len(separator)


def build(name: str, raw: bytes) -> dict:
    """Write ``name.txt.xz`` and return its row of ``corpora.json``."""
    separator, title = DOMAINS[name]
    raw = raw if len(raw) <= MAX_BYTES else raw[: boundary(raw, separator, MAX_BYTES)]
    raw.decode("utf-8")  # refuse a text that is not UTF-8 here, not in a study
    splits, start = {}, 0
    for split, share in SHARES.items():
        end = len(raw) if share == 1.0 else boundary(raw, separator, int(len(raw) * share))
        splits[split] = [start, end]
        start = end
    (CORPORA / f"{name}.txt.xz").write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    return {
        "title": title,
        "separator": separator.decode(),
        "bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "splits": splits,
    }


def main(folder: Path) -> None:
    CORPORA.mkdir(parents=True, exist_ok=True)
    rows = {name: build(name, gzip.decompress((folder / f"{name}.txt.gz").read_bytes())) for name in DOMAINS}
    (CORPORA / "corpora.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for name, row in rows.items():
        size = (CORPORA / f"{name}.txt.xz").stat().st_size
        print(f"{name:8} {row['bytes']:9,} bytes, xz {size:9,}, sha256 {row['sha256'][:12]}, {row['splits']}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
