"""Which text a method's samples are: beside their numbers in its tables stand token ids and, with a tokenizer, their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prunelab.stats.input_samples import drawn

SAMPLES, IDS, TEXT = "_samples", "_tokens", "_text"
BEFORE = 3  # tokens of context before each
UNITS = "units/"


def add_tokens(tables: Mapping[str, list[dict[str, Any]]], tokens: Tensor, tokenizer: Any | None) -> None:
    """Add to rows of tables ``units/...`` what their columns ``<name>_samples`` mean: ``<name>_tokens``, the ids of the samples
    of ``tokens`` (n, seq_len) and, if there is a ``tokenizer``, ``<name>_text``, each in brackets behind what precedes it."""
    sequence, position = drawn(*tokens.shape)
    for name, rows in tables.items():
        if not name.startswith(UNITS):
            continue
        for row in rows:
            for column in [one for one in row if one.endswith(SAMPLES)]:
                whose = column.removesuffix(SAMPLES)
                places = [(int(sequence[at]), int(position[at])) for at in map(int, row[column].split())]
                row[whose + IDS] = " ".join(str(int(tokens[place])) for place in places)
                if tokenizer is not None:
                    row[whose + TEXT] = " | ".join(_text(tokens[s], p, tokenizer) for s, p in places)


def _text(tokens: Tensor, position: int, tokenizer: Any) -> str:
    """The token at ``position`` of ``tokens`` (seq_len,) in its context, on one line."""
    before = tokenizer.decode(tokens[max(0, position - BEFORE) : position].tolist())
    own = tokenizer.decode([int(tokens[position])])
    return " ".join(f"{before}[{own}]".split())
