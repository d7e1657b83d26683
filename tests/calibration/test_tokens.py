"""Token sets: digest, files, checks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from prunelab.calibration.tokens import build_token_set, load_tokens, read_npy, save_tokens, token_digest
from prunelab.errors import DataError

IDS = np.arange(12).reshape(3, 4)


def test_digest_is_of_shape_and_little_endian_int32():
    expected = hashlib.sha256(
        (3).to_bytes(8, "little") + (4).to_bytes(8, "little") + IDS.astype("<i4").tobytes()
    ).hexdigest()
    assert token_digest(IDS) == expected
    assert token_digest(np.asfortranarray(IDS).astype(">i8")) == expected
    assert token_digest(IDS.reshape(4, 3)) != expected


def test_round_trip_and_read_only(tmp_path: Path):
    made = build_token_set(IDS, "mask", {"name": "x"}, vocab_size=12)
    save_tokens(made, tmp_path / "deep" / "tokens.npy")
    read = load_tokens(tmp_path / "deep" / "tokens.npy")
    np.testing.assert_array_equal(read.tokens, IDS)
    assert read.tokens.dtype == np.int32
    assert (read.digest, read.role, read.source) == (made.digest, "mask", {"name": "x"})
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["tokens.json", "tokens.npy"]
    for token_set in (made, read):
        with pytest.raises(ValueError, match="read-only"):
            token_set.tokens[0, 0] = 1


@pytest.mark.parametrize("vocab_size", [11, 5])
def test_ids_outside_the_vocabulary(vocab_size: int):
    with pytest.raises(DataError, match=rf"0\.\.{vocab_size - 1} .*found 0\.\.11.*another tokenizer"):
        build_token_set(IDS, "mask", {}, vocab_size)
    with pytest.raises(DataError, match=r"found -1\.\.10"):
        build_token_set(IDS - 1, "mask", {}, 12)


@pytest.mark.parametrize("tokens", [IDS.astype(float), IDS[0], IDS[:0], IDS > 3])
def test_only_integers_of_two_axes(tokens: np.ndarray):
    with pytest.raises(DataError, match=r"expected integers of shape \(n, seq_len\), found"):
        build_token_set(tokens, "mask", {}, 12)


def test_damage_is_detected(tmp_path: Path):
    path = tmp_path / "tokens.npy"
    with pytest.raises(DataError, match=r"tokens\.json cannot be read"):
        load_tokens(path)
    save_tokens(build_token_set(IDS, "mask", {}, 12), path)
    np.save(path, IDS.astype(np.int32)[:, ::-1])
    with pytest.raises(DataError, match=rf"has changed: expected sha256 {token_digest(IDS)}"):
        load_tokens(path)
    note = path.with_suffix(".json")
    row = json.loads(note.read_text())
    note.write_text(json.dumps(row | {"schema": 2}))
    with pytest.raises(DataError, match="has schema 2; this version reads schema 1"):
        load_tokens(path)
    for text in ("{", "[]", "{}"):
        note.write_text(text)
        with pytest.raises(DataError, match="cannot be read"):
            load_tokens(path)


def test_npy_files_that_are_no_tokens(tmp_path: Path):
    path = tmp_path / "x.npy"
    cases = [
        (IDS.astype(np.float32), r"holds float32; token ids are integers"),
        (IDS > 3, r"holds bool"),
        (np.arange(5), r"shape \(5,\); expected \(n, length\)"),
        (np.zeros((0, 8), np.int32), r"holds no tokens"),
        (np.array([[1, None]], dtype=object), r"Python objects are never loaded"),
    ]
    for array, message in cases:
        np.save(path, array, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            read_npy(path, "corpus 'x'")
    np.save(path, IDS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"not a complete \.npy file"):
        read_npy(path, "corpus 'x'")
    path.write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(DataError, match=r"not a complete \.npy file"):
        read_npy(path, "corpus 'x'")
    np.savez(tmp_path / "z.npz", IDS)
    (tmp_path / "z.npz").rename(path)
    with pytest.raises(DataError, match=r"\.npz archive"):
        read_npy(path, "corpus 'x'")
