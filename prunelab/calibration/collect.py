"""Spec + tokenizer + role + seed -> token set. The one entry that stages and notebooks call.

Roles are explicit, and what fits never meets what judges: ``mask`` (what a method calibrates on), ``held_out`` (reconstruction
error outside the calibration set) and ``test`` (perplexity) read different splits of a corpus;
``reconstruction`` (what kept weights are fitted to) reads the mask's split with a draw of its own. No special
token is added anywhere: windows are pieces of one joined stream, as in the papers, where a BOS would stand only
in the first. The sampler of role ``test`` is always ``sequential``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prunelab.calibration import sample
from prunelab.calibration.corpus import field, open_corpus
from prunelab.calibration.local import check_digest, check_file
from prunelab.calibration.tokens import TokenSet, build_token_set, check_range, read_npy
from prunelab.errors import ConfigError, DataError, nearest
from prunelab.files import sha256
from prunelab.split import of_split, row_range, split_of


def encoder(tokenizer: Any) -> Callable[[str], np.ndarray]:
    """Return text -> token ids (tokens,) int64 without special tokens, truncation or length warnings.

    Text that spells a special token, such as ``<|endoftext|>`` in a page about tokenizers, is text like any other.
    """

    def encode(text: str) -> np.ndarray:
        ids = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, truncation=False, verbose=False
        )["input_ids"]
        return np.asarray(ids, dtype=np.int64)

    return encode


def count_special(tokens: np.ndarray, tokenizer: Any) -> int | None:
    """Return how many of ``tokens`` (n, seq_len) are special tokens; None where no tokenizer says which are.

    None are added and none are read out of text, so a number above 0 is an unknown word or what another program wrote.
    """
    if tokenizer is None:
        return None
    return int(np.isin(tokens, list(tokenizer.all_special_ids)).sum())


def tokenizer_digest(tokenizer: Any) -> str:
    """Return 16 hex digits of the sha256 over the sorted vocabulary: which tokenizer made the ids."""
    rows = sorted(tokenizer.get_vocab().items(), key=lambda row: (row[1], row[0]))
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def collect_tokens(
    spec: Mapping,
    tokenizer: Any,
    *,
    role: str,
    n_samples: int | None,
    seq_len: int,
    seed: int,
    vocab_size: int,
) -> TokenSet:
    """Return the token set (n, seq_len) of one role.

    ``mask``, ``reconstruction`` and ``held_out`` give exactly ``n_samples`` windows by the spec's sampler; ``test`` gives the
    first ``n_samples`` full windows of its split, fewer if the text is shorter, all if ``n_samples`` is
    None. For source ``tokens`` see `_token_rows`; ``tokenizer`` may then be None. The same arguments give
    the same bytes. Raises DataError for data that are missing, malformed, changed or too short, ConfigError
    for values that no data cure.
    """
    if role not in sample.ROLES:
        raise ConfigError("role", role, ", ".join(sample.ROLES), nearest(role, sample.ROLES))
    if seq_len < 2:
        raise ConfigError("seq_len", seq_len, "2 or more tokens", "A window of one token predicts nothing.")
    if n_samples is not None and n_samples < 1:
        raise ConfigError("n_samples", n_samples, "1 or more")
    if n_samples is None and role != "test":
        raise ConfigError("n_samples", None, "1 or more", "Only role test may take everything.")
    collect = _token_rows if spec.get("source") == "tokens" else _windows
    tokens, source = collect(spec, tokenizer, role, n_samples, seq_len, seed, vocab_size)
    made: dict[str, Any] = {
        "name": spec.get("name"), "source": spec.get("source"), "seed": seed,
        "special_tokens": count_special(tokens, tokenizer),
    }  # fmt: skip
    return build_token_set(tokens, role, source | made, vocab_size)


def joiner_of(spec: Mapping, split: str) -> str:
    """Return the text between documents of ``split``: ``spec['joiner']`` is text or a mapping by split."""
    joiner = of_split(field(spec, "joiner"), split)
    if not isinstance(joiner, str):
        raise ConfigError("calibration.joiner", joiner, f"text, or text by split (here {split!r})")
    return joiner


def _windows(spec: Mapping, tokenizer: Any, role: str, n: int | None, seq_len: int, seed: int, _: int):
    """Return (windows (n, seq_len), source) of a text corpus."""
    split, state = split_of(spec, role), sample.random_state(seed, role)
    sampler = "sequential" if role == "test" else str(field(spec, "sampler"))
    sample.check_sampler(sampler)
    joiner = joiner_of(spec, split)
    corpus, encode = open_corpus(spec, split), encoder(tokenizer)
    source = {
        "id": spec.get("id") or spec.get("path"),
        "revision": corpus.commit or spec.get("revision"),
        "split": split,
        "sampler": sampler,
        "joiner": joiner,
        "corpus_digest": corpus.digest,
        "tokenizer_digest": tokenizer_digest(tokenizer),
    }
    try:
        if sampler == "documents":
            windows = sample.documents(corpus.documents, encode, n or 1, seq_len, state)
        elif sampler == "random_windows":
            windows = sample.random_windows(encode(joiner.join(corpus.documents)), n or 1, seq_len, state)
        else:
            stream = encode(joiner.join(corpus.documents))
            windows = sample.sequential(stream, n, seq_len, at_least=1 if role == "test" else n or 1)
    except DataError as error:
        raise DataError(f"corpus {spec.get('name')!r}, split {split!r}: {error}") from error
    return windows, source


def _token_rows(spec: Mapping, _, role: str, n: int | None, seq_len: int, seed: int, vocab_size: int):
    """Return (rows (n, seq_len), source) of an .npy file of ids (rows, length >= seq_len): its first columns.

    With split 'all' the file serves one role; otherwise rows are divided 80/10/10 by position. ``test`` or
    sampler 'sequential' take rows in order; else ``n`` are drawn by the seed without repetition.
    """
    what, split = f"corpus {spec.get('name')!r}", split_of(spec, role)
    path = check_file(field(spec, "path"), what)
    if path.suffix != ".npy":
        raise DataError(
            f"{what}: {path.name} is not an .npy file of token ids. For text use calibration=text."
        )
    digest = sha256(path)
    check_digest(digest, spec.get("digest"), f"{what} ({path})")
    array = read_npy(path, what)
    if array.shape[1] < seq_len:
        raise DataError(
            f"{what}: the rows of {path} have {array.shape[1]} tokens, "
            f"fewer than seq_len={seq_len}. Lower seq_len."
        )
    for start in range(0, len(array), 4096):
        check_range(array[start : start + 4096], vocab_size, f"{what} ({path})")
    rows = row_range(len(array), split)
    in_order = role == "test" or spec.get("sampler") == "sequential"
    if len(rows) < (1 if role == "test" else n or 1):
        raise DataError(
            f"{what}, split {split!r}: {n} rows were asked for, but {len(rows)} of the file's {len(array)} "
            f"rows are in this split: {len(rows)} windows. Lower n_samples or give a longer file."
        )
    if in_order:
        chosen = np.asarray(rows[:n])
    else:
        chosen = rows.start + sample.distinct(n or 1, len(rows), sample.random_state(seed, role))
    sampler = "sequential" if in_order else "rows"
    source = {"id": str(path), "split": split, "sampler": sampler, "corpus_digest": digest}
    return array[chosen, :seq_len], source
