from pathlib import Path

import numpy as np

from prunelab.tracking.jsonl import JsonlWriter, read_jsonl


def test_rows_are_on_disk_after_each_write(tmp_path: Path):
    writer = JsonlWriter(tmp_path / "deep" / "metrics.jsonl")
    writer.write(
        {"event": "shot", "shot": 1, "achieved": np.float64(0.05), "path": tmp_path, "word": "größe"}
    )
    rows = read_jsonl(writer.path)
    writer.close()
    assert rows == [{"event": "shot", "shot": 1, "achieved": 0.05, "path": str(tmp_path), "word": "größe"}]


def test_torn_last_line_is_dropped_and_mended(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"a": 1}\n{"a": 2, "b": "grö'.encode()[:-1])
    assert read_jsonl(path) == [{"a": 1}]
    with JsonlWriter(path) as writer:
        writer.write({"a": 3})
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]
    assert len(path.read_bytes().splitlines()) == 2


def test_torn_only_line_and_long_torn_tail(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a')
    JsonlWriter(path).close()
    assert path.read_bytes() == b""
    path.write_text('{"a": 1}\n{"b": "' + "x" * 10_000)
    JsonlWriter(path).close()
    assert path.read_text() == '{"a": 1}\n'


def test_absent_file_and_foreign_lines(tmp_path: Path):
    assert read_jsonl(tmp_path / "none.jsonl") == []
    (tmp_path / "odd.jsonl").write_text('[1]\n\n7\n{"a": 1}\nnot json\n')
    assert read_jsonl(tmp_path / "odd.jsonl") == [{"a": 1}]
