"""Samplers against brute force, and what they say when there is too little text."""

from __future__ import annotations

import numpy as np
import pytest

from prunelab.calibration import sample
from prunelab.errors import ConfigError, DataError


def letters(text: str) -> np.ndarray:
    """One token per character."""
    return np.array([ord(c) for c in text], dtype=np.int64)


def test_random_windows_are_pieces_of_the_stream_at_different_offsets():
    stream = np.arange(1000, 1200)  # a token says where it stands
    windows = sample.random_windows(stream, 20, 16, sample.random_state(3, "mask"))
    starts = windows[:, 0] - 1000
    assert windows.shape == (20, 16)
    assert len(set(starts)) == 20
    np.testing.assert_array_equal(windows, np.stack([stream[s : s + 16] for s in starts]))


def test_random_windows_can_use_every_offset_and_no_more():
    stream = np.arange(40)
    windows = sample.random_windows(stream, 33, 8, sample.random_state(0, "mask"))
    assert sorted(windows[:, 0]) == list(range(33))
    with pytest.raises(DataError, match=r"34 windows of 8 tokens .* 40 tokens: 33 different windows"):
        sample.random_windows(stream, 34, 8, sample.random_state(0, "mask"))
    with pytest.raises(DataError, match="0 different windows"):
        sample.random_windows(stream, 1, 41, sample.random_state(0, "mask"))


@pytest.mark.parametrize("n", [1, 5, 49, 50, 51, 100])
def test_distinct_draws_are_distinct_and_in_range(n: int):
    drawn = sample.distinct(n, 100, sample.random_state(1, "mask"))
    assert len(set(drawn.tolist())) == n
    assert drawn.min() >= 0
    assert drawn.max() < 100


def test_sequential_windows_cover_the_stream_without_its_tail():
    stream = np.arange(37)
    windows = sample.sequential(stream, None, 5)
    np.testing.assert_array_equal(windows.ravel(), np.arange(35))
    np.testing.assert_array_equal(sample.sequential(stream, 3, 5), windows[:3])
    assert len(sample.sequential(stream, 99, 5)) == 7
    with pytest.raises(DataError, match="0 full windows"):
        sample.sequential(stream, None, 38)
    with pytest.raises(DataError, match=r"8 windows of 5 .* 7 full windows"):
        sample.sequential(stream, 8, 5, at_least=8)


def test_c4_rule_takes_one_window_of_documents_longer_than_the_window():
    texts = ["a" * 8, "bcdefghijk", "short", "lmnopqrstu" * 3, "v" * 7]
    windows = sample.documents(texts, letters, 2, 8, sample.random_state(0, "mask"))
    found = ["".join(map(chr, row)) for row in windows]
    # exactly 8 tokens is not longer than 8: "aaaaaaaa" never appears
    assert sorted(next(i for i, text in enumerate(texts) if piece in text) for piece in found) == [1, 3]


def test_c4_rule_draws_every_start_of_a_document():
    texts = ["0123456789"]
    starts = {
        int(sample.documents(texts, letters, 1, 7, sample.random_state(seed, "mask"))[0, 0]) - ord("0")
        for seed in range(60)
    }
    assert starts == {0, 1, 2}  # as randint(0, len - seq_len - 1) of the published code


def test_c4_rule_ends_when_no_document_is_long_enough():
    with pytest.raises(DataError, match=r"only 0 of the 500 documents are longer than 8 tokens"):
        sample.documents(["short"] * 500, letters, 1, 8, sample.random_state(0, "mask"))
    with pytest.raises(DataError, match=r"only 1 of the 2 documents"):
        sample.documents(["short", "long enough"], letters, 2, 8, sample.random_state(0, "mask"))


def test_seed_and_role_decide_the_draw():
    stream = np.arange(5000)

    def draw(seed: int, role: str) -> list[int]:
        return sample.random_windows(stream, 4, 8, sample.random_state(seed, role))[:, 0].tolist()

    assert draw(0, "mask") == draw(0, "mask")
    assert draw(0, "mask") != draw(1, "mask")
    assert draw(0, "mask") != draw(0, "held_out")
    assert draw(0, "mask") == [2025, 2805, 2074, 952]  # numpy has frozen this stream


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_named(seed: int):
    with pytest.raises(ConfigError, match=r"seed=.*0 <= seed < 2\*\*32"):
        sample.random_state(seed, "mask")


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"random_windows, sequential, documents\. Did you mean 'random_windows'"
    ):
        sample.check_sampler("random_window")
