"""The files of a checkpoint folder that decide numbers, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunelab.config.files import content_digest
from prunelab.model_files import deciding_files

COUNTED = (
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "modeling_own.py",
    "parts/attention.py", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "spm.model", "qwen.tiktoken",
)  # fmt: skip
IGNORED = ("README.md", "chat_template.jinja", "chat_template.json", "training.log", ".cache/x.py", "__pycache__/x.py",
           "parts/notes.json", "pytorch_model.bin")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*COUNTED, *IGNORED):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(name))
    return tmp_path / "model"


def test_the_table_is_whole(folder: Path) -> None:
    assert {p.relative_to(folder).as_posix() for p in deciding_files(folder)} == set(COUNTED)


@pytest.mark.parametrize("name", COUNTED)
def test_each_counted_file_moves_the_identity(folder: Path, name: str) -> None:
    before = content_digest(folder)
    (folder / name).write_text("changed")
    assert content_digest(folder) != before


@pytest.mark.parametrize("name", IGNORED)
def test_no_other_file_does(folder: Path, name: str) -> None:
    before = content_digest(folder)
    (folder / name).write_text("changed")
    assert content_digest(folder) == before
