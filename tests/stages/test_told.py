"""Numbers of samples in a method's tables become tokens and text."""

from __future__ import annotations

import torch

from prunelab.stages.told import add_tokens
from prunelab.stats.input_samples import drawn


class Letters:
    """A tokenizer of letters."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + one) for one in ids)


def test_samples_are_the_tokens_that_the_statistic_drew() -> None:
    tokens = torch.randint(0, 26, (3, 9), generator=torch.Generator().manual_seed(0))
    sequence, position = drawn(3, 9)
    rows = [{"unit": 1, "unit_samples": "0 5 17"}]
    other = [{"unit_samples": "1"}]
    tables = {"units/tokens": rows, "shots": other}
    add_tokens(tables, tokens, None)
    ids = [int(tokens[sequence[at], position[at]]) for at in (0, 5, 17)]
    assert rows == [
        {"unit": 1, "unit_samples": "0 5 17", "unit_tokens": " ".join(map(str, ids))}
    ]  # no tokenizer, no text
    assert other == [{"unit_samples": "1"}]
    add_tokens(tables, tokens, Letters())
    texts = rows[0]["unit_text"].split(" | ")
    for at, text in zip((0, 5, 17), texts, strict=True):
        s, p = int(sequence[at]), int(position[at])
        before = Letters().decode(tokens[s, max(0, p - 3) : p].tolist())
        assert text == f"{before}[{Letters().decode([int(tokens[s, p])])}]"
