"""Self-generated text: the same bytes for the same seed, the paper's prefix, what is kept and what is dropped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from prunelab.calibration import generated
from prunelab.calibration.generated import (
    COUNTS,
    Recipe,
    Writer,
    distinct_share,
    english,
    english_prefix,
    enough,
    interleave,
)
from prunelab.calibration.sample import random_state
from prunelab.errors import DataError
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder
from prunelab.models.random import random_decoder

CONF = Path(__file__).parents[2] / "conf"
PLAIN = Recipe(1, 1, 4, 1.0, 50, None, "any", 0.0, 24, 6)


@pytest.fixture(scope="module")
def llama() -> Decoder:
    return load_decoder(yaml.safe_load((CONF / "model" / "embedded_llama.yaml").read_text()))


def test_the_same_seed_gives_the_same_bytes(llama: Decoder, tokenizer: Any) -> None:
    recipe = replace(PLAIN, language="english")
    one = Writer(llama, tokenizer, recipe, seq_len=16, seed=0)
    other = Writer(llama, tokenizer, recipe, seq_len=16, seed=0)
    first, second = one.write(0), one.write(1)
    # a chunk is itself whichever was written before it, and the process' random state is not read
    torch.manual_seed(5)
    np.random.seed(5)
    again = other.write(1)
    np.testing.assert_array_equal(again.windows, second.windows)
    assert again.counts == second.counts
    assert not np.array_equal(first.windows[:1], second.windows[:1])
    moved = Writer(llama, tokenizer, recipe, seq_len=16, seed=1).write(0)
    assert not np.array_equal(first.windows[:1], moved.windows[:1])


def test_the_prefix_is_random_then_greedy(llama: Decoder, tokenizer: Any) -> None:
    windows = Writer(llama, tokenizer, replace(PLAIN, text_len=16), seq_len=16, seed=3).write(0).windows
    special = set(tokenizer.all_special_ids)
    allowed = np.array([i for i in range(2048) if i not in special])
    states = [random_state(3, "reconstruction", number) for number in range(6)]
    first = [int(allowed[state.randint(2047, size=1)[0]]) for state in states]
    assert {int(row[0]) for row in windows} <= set(first)
    with torch.no_grad():
        logits = llama.model(input_ids=torch.from_numpy(windows[:, :5])).logits
    logits[..., sorted(special)] = -torch.inf
    np.testing.assert_array_equal(logits[:, :4].argmax(-1).numpy(), windows[:, 1:5])
    assert not set(windows.ravel().tolist()) & special


def test_counts_add_up(llama: Decoder, tokenizer: Any) -> None:
    recipe = replace(PLAIN, language="english", min_distinct=0.9, text_len=16)
    chunk = Writer(llama, tokenizer, recipe, seq_len=16, seed=0).write(0)
    assert tuple(chunk.counts) == COUNTS
    dropped = sum(count for name, count in chunk.counts.items() if name.startswith("dropped/"))
    assert chunk.counts["kept"] + dropped == chunk.counts["texts"] == 6
    assert chunk.counts["kept"] == len(chunk.windows)
    for row in chunk.windows:
        assert english(tokenizer.decode(row))
        assert distinct_share(row) >= 0.9
    tries = chunk.counts["texts"] - chunk.counts["dropped/prefix"] + chunk.counts["prefixes/rejected"]
    assert chunk.counts["tokens"] >= 5 * tries


def test_prefixes_are_read_before_texts_are_written(
    llama: Decoder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "english", lambda text: True)  # windows are let through
    texts = {}
    for language in ("any", "english"):
        recipe = replace(PLAIN, language=language, text_len=16, batch=24)
        chunk = Writer(llama, tokenizer, recipe, seq_len=16, seed=0).write(0)
        cut = "\N{REPLACEMENT CHARACTER}"  # a prefix may begin or end inside a character
        texts[language] = [tokenizer.decode(row[:5]).strip(cut) for row in chunk.windows]
        assert (chunk.counts["prefixes/rejected"] > 0) == (language == "english")
    assert all(map(english_prefix, texts["english"]))
    assert not all(map(english_prefix, texts["any"]))
    monkeypatch.setattr(generated, "english_prefix", lambda text: False)
    chunk = Writer(llama, tokenizer, replace(PLAIN, language="english"), seq_len=16, seed=0).write(0)
    assert chunk.windows.shape == (0, 16)
    assert (chunk.counts["dropped/prefix"], chunk.counts["prefixes/rejected"]) == (6, 6 * generated._TRIES)


def test_texts_that_end_early_or_repeat_are_dropped() -> None:
    decoder = random_decoder("llama")
    end = decoder.model.generation_config.eos_token_id = 7
    recipe = replace(PLAIN, top_k=None, temperature=50.0, batch=32)
    chunk = Writer(decoder, None, recipe, seq_len=20, seed=0).write(0)
    assert 0 < chunk.counts["dropped/short"] < 32
    assert not (chunk.windows == end).any()
    loops = Writer(decoder, None, replace(recipe, top_k=1, min_distinct=1.0, text_len=48), seq_len=40, seed=0)
    assert loops.write(0).counts["dropped/repetition"] > 0


def test_every_end_token_of_the_checkpoint_ends_a_text(tmp_path: Path) -> None:
    spec = yaml.safe_load((CONF / "model" / "embedded_llama.yaml").read_text())
    folder = tmp_path / "llama"
    shutil.copytree(CONF.parent / "prunelab" / "data" / "models" / "llama", folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 13]}))
    decoder = load_decoder({**spec, "source": "local", "id": str(folder)})
    assert generated._ends(decoder) == {0, 13}
    (folder / "generation_config.json").unlink()
    assert generated._ends(load_decoder({**spec, "source": "local", "id": str(folder)})) == {0}


def test_what_reads_as_english() -> None:
    assert english("It was the best of times, and it was the worst of times for all of us.")
    assert not english("Der schnelle braune Fuchs springt über den faulen Hund und läuft weg.")
    assert not english("x = foo(bar)[3]; y += qux; return baz")
    assert not english("1234 5678")
    assert english_prefix(" the man said")
    assert english_prefix("def f(x)")
    for text in (
        "сказал",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "12 34",
        "a\x00bc",
        "ab\N{REPLACEMENT CHARACTER}",
    ):
        assert not english_prefix(text)
    assert distinct_share(np.array([1, 2, 1, 2, 1, 2, 1, 2])) == pytest.approx(2 / 5)
    assert distinct_share(np.array([1, 2])) == 1.0


def test_giving_up_says_why() -> None:
    counts = dict.fromkeys(COUNTS, 0) | {"texts": 100, "kept": 3, "dropped/language": 97}
    assert enough(counts, 3, 8)
    assert not enough(counts, 5, 8)
    with pytest.raises(DataError, match=r"4 windows .* of 100 texts only 3 .* 97 language"):
        enough(counts, 4, 8)


def test_what_cannot_be_written_is_refused() -> None:
    decoder = random_decoder("llama")
    with pytest.raises(DataError, match="text_len=24: allowed is 30"):
        Writer(decoder, None, PLAIN, seq_len=30, seed=0)
    with pytest.raises(DataError, match="needs a tokenizer"):
        Writer(decoder, None, replace(PLAIN, language="english"), seq_len=16, seed=0)


def test_mixtures_are_spread_evenly() -> None:
    a, b = np.arange(8).reshape(4, 2), np.arange(100, 104).reshape(2, 2)
    mixed = interleave({"b": b, "a": a})
    assert mixed[:, 0].tolist() == [0, 100, 2, 4, 102, 6]
    assert sorted(mixed[:3, 0] >= 100) == sorted(mixed[3:, 0] >= 100)
