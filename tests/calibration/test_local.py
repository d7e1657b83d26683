"""Local text files: what is read, how it is divided, and every message."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from prunelab.calibration import local
from prunelab.calibration.corpus import load_corpus, open_corpus
from prunelab.errors import ConfigError, DataError

PARAGRAPHS = [f"Paragraph {i:02d}, as long as any other." for i in range(20)]


def spec(path: Path | str | None, **change: object) -> dict:
    return {"name": "mine", "source": "text", "path": str(path) if path else path, "column": "text"} | change


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_txt_documents_are_paragraphs_and_join_to_the_text(tmp_path: Path):
    text = "\n\n".join(PARAGRAPHS)
    path = write(tmp_path, "a.txt", text)
    assert "\n\n".join(load_corpus(spec(path), "all")) == text
    lines = write(tmp_path, "lines.txt", "one\ntwo\nthree\n")
    assert load_corpus(spec(lines), "all") == ["one", "two", "three", ""]
    marked = write(tmp_path, "bom.txt", b"\xef\xbb\xbfone\r\n\r\ntwo")
    assert load_corpus(spec(marked), "all") == ["one", "two"]


def test_all_formats_give_the_same_documents(tmp_path: Path):
    rows = "\n".join(json.dumps({"text": p, "id": i}) for i, p in enumerate(PARAGRAPHS)) + "\n\n"
    table = pyarrow.table({"text": PARAGRAPHS, "id": list(range(20))})
    parquet.write_table(table, tmp_path / "a.parquet")
    files = [
        write(tmp_path, "a.txt", "\n\n".join(PARAGRAPHS)),
        write(tmp_path, "a.jsonl", rows),
        write(tmp_path, "a.json.gz", gzip.compress(rows.encode())),
        tmp_path / "a.parquet",
    ]
    for path in files:
        assert load_corpus(spec(path), "all") == PARAGRAPHS


def test_splits_are_disjoint_and_complete(tmp_path: Path):
    path = write(tmp_path, "a.txt", "\n\n".join(PARAGRAPHS))
    parts = [load_corpus(spec(path), split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert [document for part in parts for document in part] == PARAGRAPHS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"caf\xe9 noir", r"not UTF-8: byte 0xe9 at offset 3.*iconv"),
        ("a.txt", b"", r"is empty \(0 bytes\)"),
        ("a.txt", b" \n\n \n", r"holds no text, only blanks"),
        ("a.md", b"text", r"a\.md has an unknown ending; allowed are \.txt, \.jsonl, \.parquet"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r"line 1: it has no field 'text', but 'body'"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: 'text' is int, not text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}', r"byte 0xe9 at offset 13 of line 2"),
        ("a.jsonl", b"[1, 2]\n", r"it is list, not an object"),
        ("a.json.gz", b"\x1f\x8b\x08\x00broken", r"cannot be read"),
        ("a.json.gz", gzip.compress(b'{"text": "x"}\n' * 900, mtime=0)[:-20], r"cannot be read"),
        ("a.parquet", b"PAR1 and nothing more", r"not a readable parquet file"),
        ("a.npy", b"whatever", r"token ids, not text. Use calibration=tokens"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, name: str, data: bytes, message: str):
    path = write(tmp_path, name, data)
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(spec(path), "all")
    assert name in str(caught.value)


def test_parquet_columns(tmp_path: Path):
    parquet.write_table(
        pyarrow.table({"texts": ["a"], "number": [1], "holes": ["a"]}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"no column 'text'; it has \['texts', 'number', 'holes'\].*'texts'"):
        load_corpus(spec(tmp_path / "a.parquet"), "all")
    with pytest.raises(DataError, match=r"column 'number' .* holds int64, not text"):
        load_corpus(spec(tmp_path / "a.parquet", column="number"), "all")
    parquet.write_table(pyarrow.table({"text": ["a", None, None]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"row 2: 'text' is null"):
        load_corpus(spec(tmp_path / "b.parquet"), "all")


def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "notes.txt", "text")
    with pytest.raises(DataError, match=r"no file .*note\.txt\. Did you mean 'notes\.txt'"):
        load_corpus(spec(tmp_path / "note.txt"), "all")
    with pytest.raises(DataError, match="no file"):
        load_corpus(spec(tmp_path / "no" / "such.txt"), "all")
    with pytest.raises(DataError, match="is a folder"):
        load_corpus(spec(tmp_path), "all")
    with pytest.raises(DataError, match="path is None"):
        load_corpus(spec(None), "all")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"is relative; .*{tmp_path}/notes.txt"):
        load_corpus(spec("notes.txt"), "all")


def test_files_of_more_than_4_gib_are_refused_before_reading(tmp_path: Path):
    path = tmp_path / "huge.txt"
    with path.open("wb") as handle:
        os.truncate(handle.fileno(), 4 * 2**30 + 1)  # sparse: takes no room
    with pytest.raises(DataError, match=r"has 4\.0 GiB; at most 4 GiB are read.*cut a piece"):
        load_corpus(spec(path), "all")


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.json.gz"])
def test_a_small_gz_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch, name: str):
    path = write(tmp_path, name, gzip.compress(b"a" * 5000))
    monkeypatch.setattr(local, "MAX_BYTES", 4096)
    with pytest.raises(DataError, match="unpacks to more than"):
        load_corpus(spec(path), "all")


def test_digest_is_checked(tmp_path: Path):
    path = write(tmp_path, "a.txt", "\n\n".join(PARAGRAPHS))
    digest = open_corpus(spec(path), "all").digest
    assert open_corpus(spec(path, digest=digest), "all").digest == digest
    path.write_text("other text")
    with pytest.raises(DataError, match=rf"has changed: expected sha256 {digest}, found [0-9a-f]{{64}}"):
        load_corpus(spec(path, digest=digest), "all")


def test_a_split_without_text_is_named(tmp_path: Path):
    path = write(tmp_path, "a.txt", "one paragraph only")
    with pytest.raises(DataError, match=r"split 'train' is empty.*split 'all'"):
        load_corpus(spec(path), "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "texts"}, r"calibration\.source='texts'.*Did you mean 'text'"),
        ({"source": "self"}, "embedded, hub, text, tokens"),
    ],
)
def test_unknown_sources_are_named(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        load_corpus(spec("/x.txt", **change), "all")


def test_unknown_splits_and_missing_keys_are_named():
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        load_corpus(spec("/x.txt"), "trian")
    with pytest.raises(ConfigError, match=r"calibration\.source"):
        load_corpus({"name": "mine"}, "train")


def test_a_column_of_categories_is_text(tmp_path):
    texts = ["the river", "the mill", "the river"]
    path = tmp_path / "category.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array(texts).dictionary_encode()}), path)
    assert local.read_documents(path, "text", "corpus") == texts


@pytest.mark.parametrize(
    ("text", "said"), [("a \ud83d", "half of a surrogate pair"), (None, "'text' is null")]
)
def test_a_late_row_without_text_is_told(tmp_path, text, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ("one", "two", text)))
    with pytest.raises(DataError, match=f"line 3: .*{said}"):
        local.read_documents(path, "text", "corpus")
