"""Sampling with a cache: equal to whole forwards on every family, and the draw by inversion."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from prunelab.errors import DataError
from prunelab.models.decoder import Decoder
from prunelab.models.generate import Sampling, extend, likeliest, sample
from prunelab.models.random import random_decoder

NOTHING = torch.tensor([], dtype=torch.int64)
ALL = Sampling(1.0, None, None)


def test_the_cache_changes_nothing(decoder: Decoder, tokens: Tensor) -> None:
    found = extend(decoder, tokens[:, :3], 14, partial(likeliest, banned=NOTHING))
    assert found.shape == (5, 17)
    with torch.no_grad():
        logits = decoder.model(input_ids=found, use_cache=False).logits
    best = logits[:, 2:-1].max(-1).values
    chosen = logits[:, 2:-1].gather(-1, found[:, 3:, None])[..., 0]
    torch.testing.assert_close(chosen, best, atol=1e-4, rtol=1e-4)


def test_the_end_of_all_rows_ends_the_work(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    ends = iter([5, 9, 5, 7])
    found = extend(decoder, tokens[:2, :2], 10, lambda logits: torch.tensor([next(ends), next(ends)]), {5, 7})
    assert found[:, 2:].tolist() == [[5, 5], [9, 7]]


def test_a_text_longer_than_the_context_is_refused() -> None:
    decoder = random_decoder("llama")
    with pytest.raises(DataError, match="text_len"):
        extend(
            decoder, torch.zeros(1, 2, dtype=torch.int64), decoder.max_len, lambda logits: logits.argmax(-1)
        )


def test_the_draw_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    uniform = (np.arange(4000) + 0.5) / 4000
    for sampling, kept in ((ALL, 4), (Sampling(2.0, 3, None), 3), (Sampling(1.0, None, 0.7), 2)):
        drawn = sample(logits.expand(4000, 4), sampling, uniform, NOTHING)
        shares = (logits[0].double() / sampling.temperature).softmax(-1)
        shares[shares.argsort(descending=True)[kept:]] = 0
        torch.testing.assert_close(
            torch.bincount(drawn, minlength=4) / 4000.0, (shares / shares.sum()).float(), atol=1e-3, rtol=0
        )


def test_banned_tokens_and_edges_are_never_drawn() -> None:
    logits = torch.tensor([[0.0, 5.0, 2.0, 1.0]]).expand(2, 4)
    edges = np.array([0.0, np.nextafter(1.0, 0.0)])
    assert sample(logits, ALL, edges, torch.tensor([1, 3])).tolist() == [0, 2]
    assert sample(logits, Sampling(1.0, 1, None), edges, NOTHING).tolist() == [1, 1]
    assert sample(logits, Sampling(1.0, None, 1e-9), edges, torch.tensor([1])).tolist() == [2, 2]
    assert likeliest(logits, torch.tensor([1])).tolist() == [2, 2]
