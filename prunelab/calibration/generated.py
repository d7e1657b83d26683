"""Self-generated text: what the dense model writes by itself, for reconstruction only.

Shin et al., "Rethinking Pruning Large Language Models: Benefits and Pitfalls of Reconstruction Error
Minimization", EMNLP 2024, arXiv:2406.15524: a first token uniform over the vocabulary, four more by the
highest probability, a language check of these five, then sampling until the text ends or is long enough; a
random window of every text that is long enough. (The rule is that of LLM-QAT, arXiv:2305.17888.)

Where this differs: token ids are kept as they are drawn (the paper stores text and tokenises it again, which
moves tokens); special tokens are never drawn, except one that ends the text; every text is used at most once
(the paper draws with replacement); the whole window is checked as well, since the paper reports program code
and foreign text behind accepted prefixes; and language is judged by the plain rules below, not by a package.

Text ``i`` of a seed has random numbers of its own, and texts are written in chunks of ``batch`` whatever the
number asked for: more windows only append, and a chunk can be written again alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from prunelab.calibration.sample import random_state
from prunelab.errors import DataError
from prunelab.models.decoder import Decoder
from prunelab.models.generate import Sampling, extend, likeliest, sample

COUNTS = (
    "texts", "kept", "tokens", "prefixes/rejected",
    "dropped/prefix", "dropped/short", "dropped/language", "dropped/repetition",
)  # fmt: skip
_TRIES = 20  # prefixes a text may try
_LEAST = 20  # texts written per window asked for, before giving up
_MIN_FUNCTION_WORDS = 0.15  # of all words; English prose has 0.4 to 0.5, other languages below 0.1
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about after all an and any are as at be been but by can could did do for from had has have he her him "
        "his i if in into is it its may more my no not of on one or our out shall she should so some such than "
        "that the their them then there these they this thou thy to unto up upon us was we were what when which "
        "who will with would ye you your",
    )
)


@dataclass(frozen=True)
class Recipe:
    """How texts are written and which are kept; every field decides the result.

    ``text_len``: tokens a text may have. ``language``: 'english' checks prefix and window, 'any' does not.
    ``min_distinct``: least share of distinct 4-grams of tokens in a window. ``batch``: texts side by side.
    """

    revision: int
    random_tokens: Annotated[int, "x >= 1"]
    greedy_tokens: Annotated[int, "x >= 0"]
    temperature: Annotated[float, "x > 0"]
    top_k: Annotated[int | None, "x >= 1"]
    top_p: Annotated[float | None, "0 < x <= 1"]
    language: Annotated[str, "english | any"]
    min_distinct: Annotated[float, "0 <= x <= 1"]
    text_len: Annotated[int, "x >= 2"]
    batch: Annotated[int, "x >= 1"]


@dataclass(frozen=True, eq=False)
class Chunk:
    """``windows`` (k, seq_len) int64 of the texts that were kept, and the `COUNTS` of this chunk."""

    windows: np.ndarray
    counts: dict[str, int]


class Writer:
    """Writes chunks of texts with one dense model; ``tokenizer`` may be None if ``language`` is 'any'."""

    def __init__(self, decoder: Decoder, tokenizer: Any, recipe: Recipe, *, seq_len: int, seed: int) -> None:
        if not seq_len <= recipe.text_len <= decoder.max_len:
            raise DataError(
                f"text_len={recipe.text_len}: allowed is {seq_len} (the window) to {decoder.max_len}, "
                f"the context of {decoder.name}."
            )
        if tokenizer is None and recipe.language != "any":
            raise DataError(f"language={recipe.language!r} needs a tokenizer; use language='any'.")
        self._decoder, self._recipe = decoder, recipe
        self._tokenizer: Any = tokenizer
        self._seq_len, self._seed = seq_len, seed
        width = int(decoder.model.config.get_text_config().vocab_size)
        known = width if tokenizer is None else min(width, len(tokenizer))
        self._ends = _ends(decoder)
        special = (set() if tokenizer is None else set(tokenizer.all_special_ids)) | self._ends
        special |= set(range(known, width))
        self._first = np.array(sorted(set(range(width)) - special))
        self._banned = torch.tensor(sorted(special), dtype=torch.int64)
        self._banned_later = torch.tensor(sorted(special - self._ends), dtype=torch.int64)

    def write(self, chunk: int) -> Chunk:
        """Return chunk ``chunk`` (0, 1, ...): texts ``chunk * batch`` and following; the same bytes every time."""
        recipe, counts = self._recipe, Counter[str]()
        numbers = range(chunk * recipe.batch, (chunk + 1) * recipe.batch)
        states = [random_state(self._seed, "reconstruction", number) for number in numbers]
        counts["texts"] += len(states)
        started = self._prefixes(states, counts)
        counts["dropped/prefix"] += len(states) - len(started)
        windows: list[np.ndarray] = []
        if started:
            chosen = [states[slot] for slot in started]
            # drawn before the text: the number of steps depends on the longest text of the chunk
            places = [state.random_sample() for state in chosen]
            sampling = Sampling(recipe.temperature, recipe.top_k, recipe.top_p)

            def pick(logits: Tensor) -> Tensor:
                uniform = np.array([state.random_sample() for state in chosen])
                return sample(logits, sampling, uniform, self._banned_later)

            start = torch.from_numpy(np.stack(list(started.values())))
            texts = extend(self._decoder, start, recipe.text_len - start.shape[1], pick, self._ends).numpy()
            for text, place in zip(texts, places, strict=True):
                windows += self._window(text, start.shape[1], place, counts)
        counts["kept"] += len(windows)
        kept = np.stack(windows) if windows else np.zeros((0, self._seq_len), dtype=np.int64)
        return Chunk(kept, {name: counts[name] for name in COUNTS})

    def _prefixes(self, states: list[np.random.RandomState], counts: Counter) -> dict[int, np.ndarray]:
        """Return slot -> accepted prefix (random_tokens + greedy_tokens,); every slot tries up to _TRIES times."""
        recipe, found = self._recipe, {}
        for _ in range(_TRIES):
            waiting = [slot for slot in range(len(states)) if slot not in found]
            if not waiting:
                break
            drawn = [
                self._first[states[s].randint(len(self._first), size=recipe.random_tokens)] for s in waiting
            ]
            greedy = partial(likeliest, banned=self._banned)
            prefixes = extend(self._decoder, torch.from_numpy(np.stack(drawn)), recipe.greedy_tokens, greedy)
            counts["tokens"] += prefixes.numel()
            for slot, prefix in zip(waiting, prefixes.numpy(), strict=True):
                if recipe.language == "any" or english_prefix(self._decode(prefix)):
                    found[slot] = prefix
                else:
                    counts["prefixes/rejected"] += 1
        return dict(sorted(found.items()))

    def _window(self, text: np.ndarray, n_prefix: int, place: float, counts: Counter) -> list[np.ndarray]:
        """Return the window of a text in a list, or an empty list and a count of why it was dropped."""
        stops = np.flatnonzero(np.isin(text[n_prefix:], sorted(self._ends)))
        text = text[: n_prefix + int(stops[0])] if len(stops) else text
        counts["tokens"] += len(text) - n_prefix
        if len(text) < self._seq_len:
            counts["dropped/short"] += 1
            return []
        first = int(place * (len(text) - self._seq_len + 1))
        window = text[first : first + self._seq_len]
        if self._recipe.language != "any" and not english(self._decode(window)):
            counts["dropped/language"] += 1
        elif distinct_share(window) < self._recipe.min_distinct:
            counts["dropped/repetition"] += 1
        else:
            return [window]
        return []

    def _decode(self, tokens: np.ndarray) -> str:
        # a window may begin or end inside a character
        text = self._tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False)
        return text.strip("\N{REPLACEMENT CHARACTER}")


def enough(counts: Mapping[str, int], n_samples: int, batch: int) -> bool:
    """Say whether ``n_samples`` windows are there; DataError once too many texts were written for too few."""
    if counts["kept"] >= n_samples:
        return True
    if counts["texts"] >= _LEAST * n_samples + batch:
        why = ", ".join(f"{counts[name]} {name.removeprefix('dropped/')}" for name in COUNTS[4:])
        raise DataError(
            f"self-generated text: {n_samples} windows were asked for, but of {counts['texts']} texts only "
            f"{counts['kept']} were kept (dropped: {why}). Raise text_len, or loosen language or min_distinct."
        )
    return False


def english_prefix(text: str) -> bool:
    """Say whether a few tokens may begin English text: printable, ASCII letters only, and a word among them."""
    if any(
        not (char.isprintable() or char in "\n\t") or char == "\N{REPLACEMENT CHARACTER}" for char in text
    ):
        return False
    letters = [char for char in text if char.isalpha()]
    return all(char.isascii() for char in letters) and re.search(r"[A-Za-z]{2}", text) is not None


def english(text: str) -> bool:
    """Say whether text reads as English: nearly all letters ASCII, and function words among the words."""
    letters = [char for char in text if char.isalpha()]
    words = re.findall(r"[a-z]+", text.lower())
    if not words or sum(char.isascii() for char in letters) < 0.97 * len(letters):
        return False
    return sum(word in _FUNCTION_WORDS for word in words) >= _MIN_FUNCTION_WORDS * len(words)


def distinct_share(tokens: np.ndarray) -> float:
    """Return how many of a window's 4-grams of tokens are different ones, as a share; 1 for fewer than 4 tokens."""
    grams = [tuple(tokens[i : i + 4].tolist()) for i in range(len(tokens) - 3)]
    return len(set(grams)) / len(grams) if grams else 1.0


def interleave(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rows of all parts (n_i, seq_len), spread evenly over each other; ties in the order of names.

    Any stretch of the result holds the parts in the ratio of the whole, give or take a row of each: one kept back to
    decide when training ends, and the first ones, on which the error is measured. A part may be missing there
    if the stretch is short and its share small.
    """
    rows = [
        ((i + 0.5) / len(array), name, i) for name, array in sorted(parts.items()) for i in range(len(array))
    ]
    return np.stack([parts[name][i] for _, name, i in sorted(rows)])


def _ends(decoder: Decoder) -> set[int]:
    """Return the tokens that end a text, by the checkpoint's own settings."""
    settings = getattr(decoder.model, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    found = decoder.model.config.get_text_config().eos_token_id if found is None else found
    return set() if found is None else {int(i) for i in (found if isinstance(found, list) else [found])}
