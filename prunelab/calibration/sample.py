"""Samplers: token streams in, windows (n, seq_len) out. No special tokens are added; nothing is padded.

- ``random_windows``: random start offsets without repetition in the joined stream (as the code of the LLM
  Surgeon, arXiv:2312.17244; windows may overlap each other, two are never the same);
- ``sequential``: non-overlapping full windows from the start, the tail dropped (every perplexity);
- ``documents``: the C4 rule of SparseGPT (arXiv:2301.00774) and Wanda (arXiv:2306.11695): random document,
  kept if longer than seq_len tokens, one random window of it. The published code draws with replacement and
  loops for ever when no document is long enough; here documents are drawn without replacement, so the draw
  ends.

Random numbers come from numpy's legacy RandomState, whose stream numpy has frozen (NEP 19): the same seed
gives the same windows under every numpy version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunelab.errors import ConfigError, DataError, nearest

SAMPLERS = ("random_windows", "sequential", "documents")
ROLES = ("mask", "held_out", "test", "reconstruction")


def random_state(seed: int, role: str, *parts: int) -> np.random.RandomState:
    """Return the random state of (seed, role, parts); roles with the same seed draw differently."""
    if not 0 <= seed < 2**32:
        raise ConfigError("seed", seed, "0 <= seed < 2**32")
    return np.random.RandomState([seed, ROLES.index(role), *parts])


def check_sampler(sampler: str) -> None:
    if sampler not in SAMPLERS:
        raise ConfigError("calibration.sampler", sampler, ", ".join(SAMPLERS), nearest(sampler, SAMPLERS))


def distinct(n: int, below: int, state: np.random.RandomState) -> np.ndarray:
    """Return ``n`` different integers in [0, below), in drawn order; needs n <= below."""
    if 2 * n > below:
        return state.permutation(below)[:n]
    chosen: dict[int, None] = {}  # rejection: no permutation of a stream of 10^9 tokens
    while len(chosen) < n:
        chosen.setdefault(int(state.randint(below)))
    return np.fromiter(chosen, np.int64)


def random_windows(stream: np.ndarray, n: int, seq_len: int, state: np.random.RandomState) -> np.ndarray:
    """Return (n, seq_len) windows of ``stream`` (tokens,) at different random offsets, in drawn order."""
    available = max(0, len(stream) - seq_len + 1)
    if available < n:
        raise DataError(
            f"{n} windows of {seq_len} tokens were asked for, but the text has {len(stream)} tokens: "
            f"{available} different windows. Lower n_samples or seq_len, or take a longer text."
        )
    starts = distinct(n, available, state)
    return stream[starts[:, None] + np.arange(seq_len)]


def sequential(stream: np.ndarray, n: int | None, seq_len: int, at_least: int = 1) -> np.ndarray:
    """Return the first windows (k, seq_len) of ``stream`` (tokens,) in order; k = n or all there are.

    Raises DataError if there are fewer than ``at_least``.
    """
    available = len(stream) // seq_len
    if available < at_least:
        raise DataError(
            f"{at_least} windows of {seq_len} tokens were asked for, but the text has {len(stream)} tokens: "
            f"{available} full windows. Lower n_samples or seq_len, or take a longer text."
        )
    k = available if n is None else min(n, available)
    return stream[: k * seq_len].reshape(k, seq_len)


def documents(
    texts: Sequence[str],
    encode: Callable[[str], np.ndarray],
    n: int,
    seq_len: int,
    state: np.random.RandomState,
) -> np.ndarray:
    """Return (n, seq_len): one random window from each of ``n`` documents longer than ``seq_len`` tokens."""
    rows = []
    for index in state.permutation(len(texts)):
        tokens = encode(texts[int(index)])
        if len(tokens) <= seq_len:
            continue
        start = state.randint(len(tokens) - seq_len)
        rows.append(tokens[start : start + seq_len])
        if len(rows) == n:
            return np.stack(rows)
    raise DataError(
        f"{n} windows of {seq_len} tokens were asked for, but only {len(rows)} of the {len(texts)} "
        "documents are "
        f"longer than {seq_len} tokens: {len(rows)} windows. Lower n_samples or seq_len, or use "
        "sampler=random_windows, which joins documents."
    )
