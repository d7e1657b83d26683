"""Spec to token set: determinism, roles that share nothing, .npy rows, messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prunelab.calibration.collect import collect_tokens, count_special, split_of
from prunelab.calibration.corpus import load_corpus
from prunelab.errors import ConfigError, DataError

ROLES = ("mask", "held_out", "test")


@pytest.fixture
def passages(tmp_path: Path, spec_of) -> dict:
    """A small text spec: the validation split of one embedded corpus as a .txt file."""
    path = tmp_path / "passages.txt"
    path.write_text("\n\n".join(load_corpus(spec_of("austen"), "validation")[:150]), encoding="utf-8")
    return spec_of("text") | {"path": str(path)}


def collect(spec: dict, tokenizer, role: str = "mask", **change):
    arguments = {"n_samples": 4, "seq_len": 32, "seed": 0, "vocab_size": 2048} | change
    return collect_tokens(spec, tokenizer, role=role, **arguments)


def test_same_arguments_give_the_same_bytes(passages, tokenizer):
    first, again = collect(passages, tokenizer), collect(passages, tokenizer)
    assert first.tokens.shape == (4, 32)
    assert first.tokens.dtype == np.int32
    assert first.digest == again.digest
    assert first.source == again.source
    assert collect(passages, tokenizer, seed=1).digest != first.digest
    assert first.source["special_tokens"] == 0
    assert first.source["split"] == "train"


def test_roles_read_disjoint_text(passages, tokenizer):
    texts = {role: "\n\n".join(load_corpus(passages, split_of(passages, role))) for role in ROLES}
    for role in ROLES:
        for row in collect(passages, tokenizer, role, n_samples=3).tokens:
            # a window may begin or end inside a character or a paragraph break: compare its inside
            piece = tokenizer.decode(row).strip()[5:-5]
            assert [other for other in ROLES if piece in texts[other]] == [role]


def test_test_role_is_sequential_and_takes_what_there_is(passages, tokenizer):
    stream = tokenizer("\n\n".join(load_corpus(passages, "test")), verbose=False)["input_ids"]
    everything = collect(passages, tokenizer, "test", n_samples=None)
    np.testing.assert_array_equal(everything.tokens.ravel(), stream[: len(stream) // 32 * 32])
    assert collect(passages, tokenizer, "test", n_samples=10**6).digest == everything.digest
    np.testing.assert_array_equal(
        collect(passages, tokenizer, "test", n_samples=2).tokens, everything.tokens[:2]
    )
    assert everything.source["sampler"] == "sequential"


def test_embedded_held_out_set(spec_of, tokenizer):
    found = collect(spec_of("jargon"), tokenizer, "held_out", n_samples=3, seq_len=64)
    assert found.tokens.shape == (3, 64)
    assert found.source["split"] == "validation"


def test_documents_sampler_end_to_end(passages, tokenizer):
    spec = passages | {"sampler": "documents"}
    assert collect(spec, tokenizer).tokens.shape == (4, 32)
    with pytest.raises(DataError, match=r"'text', split 'train': 4 windows of 5000 .* only 0 of"):
        collect(spec, tokenizer, seq_len=5000)


@pytest.mark.parametrize("sampler", ["random_windows", "sequential"])
def test_too_little_text_says_how_many_windows(passages, tokenizer, sampler):
    with pytest.raises(DataError, match=r"corpus 'text', split 'validation': 10000 windows of 32 .*: \d+ "):
        collect(passages | {"sampler": sampler}, tokenizer, "held_out", n_samples=10000)


def test_a_tokenizer_larger_than_the_model_is_refused(passages, tokenizer):
    with pytest.raises(DataError, match=r"0\.\.299 \(the model's vocabulary\), found .*another tokenizer"):
        collect(passages, tokenizer, vocab_size=300)


@pytest.mark.parametrize(
    ("change", "role", "message"),
    [
        ({}, "train", r"role='train': allowed is mask, held_out, test"),
        ({"seq_len": 1}, "mask", r"seq_len=1: allowed is 2 or more"),
        ({"n_samples": 0}, "mask", r"n_samples=0: allowed is 1 or more"),
        ({"n_samples": None}, "mask", r"Only role test"),
        ({"seed": -1}, "mask", r"seed=-1"),
    ],
)
def test_arguments_out_of_range_are_named(passages, tokenizer, change, role, message):
    with pytest.raises(ConfigError, match=message):
        collect(passages, tokenizer, role, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "sequental"}, "Did you mean 'sequential'"),
        ({"joiner": None}, r"calibration\.joiner=None"),
        ({"joiner": {"test": " "}}, r"text by split \(here 'train'\)"),
        ({"split": {"mask": "test"}}, "Roles never share text"),
        ({"split": "validation"}, "Roles never share text"),
        ({"split": {"mask": "all"}}, "Roles never share text"),
        ({"split": {"mask": "trian"}}, r"Did you mean 'train'"),
    ],
)
def test_spec_values_out_of_range_are_named(passages, tokenizer, change, message):
    with pytest.raises(ConfigError, match=message):
        collect(passages | change, tokenizer)


def test_splits_by_role():
    assert [split_of({}, role) for role in ROLES] == ["train", "validation", "test"]
    assert [split_of({"split": "all"}, role) for role in ROLES] == ["all"] * 3
    swapped = {"split": {"mask": "test", "held_out": "train", "test": "validation"}}
    assert [split_of(swapped, role) for role in ROLES] == ["test", "train", "validation"]


@pytest.fixture
def rows(tmp_path: Path, spec_of) -> dict:
    """20 rows of 40 ids; row r holds 100 r, 100 r + 1, ... (vocabulary 2,048)."""
    np.save(tmp_path / "ids.npy", (100 * np.arange(20)[:, None] + np.arange(40)).astype(np.uint16))
    return spec_of("tokens") | {"path": str(tmp_path / "ids.npy"), "n_samples": 12}


def test_token_files_give_rows(rows):
    mask = collect(rows, None, n_samples=12).tokens
    assert mask.shape == (12, 32)
    np.testing.assert_array_equal(mask - mask[:, :1], np.tile(np.arange(32), (12, 1)))
    drawn = list(mask[:, 0] // 100)
    assert len(set(drawn)) == 12
    assert drawn != sorted(drawn)
    assert list(collect(rows, None, seed=5, n_samples=12).tokens[:, 0] // 100) != drawn
    assert sorted(collect(rows, None, n_samples=20).tokens[:, 0] // 100) == list(range(20))
    everything = collect(rows, None, "test", n_samples=None).tokens
    np.testing.assert_array_equal(everything[:, 0] // 100, np.arange(20))
    assert collect(rows, None, "test", n_samples=3).tokens.shape == (3, 32)


def test_divided_token_files_share_no_row_for_any_seed(rows):
    spec = rows | {"split": {"mask": "train", "held_out": "validation", "test": "test"}}
    for seed in range(3):
        assert sorted(collect(spec, None, n_samples=16, seed=seed).tokens[:, 0] // 100) == list(range(16))
        assert sorted(collect(spec, None, "held_out", n_samples=2, seed=seed).tokens[:, 0] // 100) == [16, 17]
    assert list(collect(spec, None, "test", n_samples=None).tokens[:, 0] // 100) == [18, 19]
    in_order = collect(spec | {"sampler": "sequential"}, None, n_samples=5)
    assert list(in_order.tokens[:, 0] // 100) == [0, 1, 2, 3, 4]
    assert in_order.source["sampler"] == "sequential"


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({"seq_len": 41}, "all", r"have 40 tokens, fewer than seq_len=41"),
        ({"n_samples": 21}, "all", r"split 'all': 21 rows were asked for, but 20 of the file's 20 rows"),
        ({"n_samples": 17}, "train", r"split 'train': 17 rows .* 16 of the file's 20 rows .*: 16 windows"),
        ({"vocab_size": 1900}, "all", r"0\.\.1899 .*found 0\.\.1939"),
    ],
)
def test_token_files_that_do_not_suffice(rows, change, split, message):
    with pytest.raises(DataError, match=message):
        collect(rows | {"split": split}, None, **change)


def test_token_files_that_are_not_tokens(rows, tmp_path: Path):
    with pytest.raises(DataError, match="expected sha256 0000"):
        collect(rows | {"digest": "0" * 64}, None)
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match=r"a\.txt is not an \.npy file.*calibration=text"):
        collect(rows | {"path": str(tmp_path / "a.txt")}, None)
    np.save(tmp_path / "f.npy", np.zeros((3, 40)))
    with pytest.raises(DataError, match="holds float64"):
        collect(rows | {"path": str(tmp_path / "f.npy")}, None)
    whole = (tmp_path / "ids.npy").read_bytes()
    (tmp_path / "ids.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a complete"):
        collect(rows, None)


def test_calibration_is_light_to_import():
    code = (
        "import sys, prunelab.calibration.collect as _;"
        "print([m for m in ('torch', 'transformers', 'hydra', 'omegaconf', 'pyarrow') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_special_tokens_in_text_are_text_and_the_record_counts_what_there_is(tokenizer, tmp_path):
    path = tmp_path / "special.txt"
    path.write_text("The end of a text is marked <|endoftext|> in many corpora. " * 200)
    spec = {
        "name": "t",
        "source": "text",
        "path": str(path),
        "split": "all",
        "sampler": "sequential",
        "joiner": "\n\n",
    }
    found = collect_tokens(spec, tokenizer, role="mask", n_samples=8, seq_len=32, seed=0, vocab_size=2048)
    assert tokenizer.eos_token_id not in found.tokens
    assert "<|endoftext|>" in tokenizer.decode(found.tokens[0].tolist())
    assert found.source["special_tokens"] == 0
    written = np.array([[5, 0, 7], [0, 0, 9]])  # as a tokenizer that adds them writes
    assert count_special(written, tokenizer) == 3
    assert count_special(written, None) is None
