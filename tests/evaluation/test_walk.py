"""Errors of a pruned model along the blocks, against hooks on two separate models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelab.evaluation.perplexity import perplexity
from prunelab.evaluation.walk import measure
from prunelab.models.activation import Placement
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder


def block_outputs(decoder: Decoder, tokens: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []

    def listen(module: Any, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(listen) for block in decoder.blocks]
    with torch.no_grad():
        decoder.model(tokens)
    for handle in handles:
        handle.remove()
    return outputs


def halving(decoder: Decoder) -> Callable[[int], None]:
    """A stand-in for pruned tensors: every second output feature of every linear map becomes zero."""

    def apply(index: int) -> None:
        for site in decoder.sites(index):
            site.linear.weight[::2] = 0
            if site.linear.bias is not None:
                site.linear.bias[::2] = 0

    return apply


@pytest.mark.parametrize("batch_size", [5, 2])
def test_measure(family_name: str, tokens: Tensor, batch_size: int) -> None:
    dense, pruned, decoder = (random_decoder(family_name) for _ in range(3))
    for index in range(2):
        halving(pruned)(index)
    streams = {"calibration": tokens, "held_out/other": tokens[1:, :12].flip(0).contiguous()}
    text = {"a": tokens, "b": tokens[:2].contiguous()}
    said: list[dict] = []
    got = measure(decoder, halving(decoder), text, streams, batch_size, progress=said.append)

    assert [(row["block"], row["stream"]) for row in got.blocks] == [
        (index, name) for index in range(2) for name in streams
    ]
    for name, batch in streams.items():
        pairs = zip(block_outputs(dense, batch), block_outputs(pruned, batch), strict=True)
        for index, (a, b) in enumerate(pairs):
            row = next(row for row in got.blocks if row["block"] == index and row["stream"] == name)
            error_sq, norm_sq = float((a - b).double().square().sum()), float(a.double().square().sum())
            assert row["error_sq"] == pytest.approx(error_sq, rel=1e-4)
            assert row["norm_sq"] == pytest.approx(norm_sq, rel=1e-5)
            assert row["error"] == row["error_sq"] / row["norm_sq"]
            assert row["mse"] == row["error_sq"] / a.numel()
        assert got.errors[name] == row["error"] > 0
        assert got.mse[name] == row["mse"] > 0
    assert got.perplexity == {name: perplexity(pruned, batch, batch_size) for name, batch in text.items()}
    # the decoder is the pruned model now
    for a, b in zip(decoder.model.parameters(), pruned.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [row["event"] for row in said] == ["block"] * 4 + ["perplexity"] * 2
    assert said[0] == {"event": "block", "block": 0, "stream": "calibration", "error": got.blocks[0]["error"]}
    assert said[-1] == {"event": "perplexity", "corpus": "b", "perplexity": got.perplexity["b"]}


def test_nothing_changed_is_no_error(decoder: Decoder, tokens: Tensor) -> None:
    got = measure(decoder, lambda index: None, {}, {"calibration": tokens}, 2)
    assert [row["error"] for row in got.blocks] == [0.0, 0.0]
    assert got.errors == {"calibration": 0.0}
    assert got.perplexity == {}


def test_dense_gives_perplexity_only(decoder: Decoder, tokens: Tensor) -> None:
    got = measure(decoder, None, {"a": tokens}, {"calibration": tokens}, 2)
    assert got.blocks == []
    assert got.errors == {}
    assert got.perplexity == {"a": perplexity(decoder, tokens, 2)}


def test_a_broken_block_is_inf(tokens: Tensor) -> None:
    decoder = random_decoder("llama")

    def ruin(index: int) -> None:
        decoder.sites(index)[0].linear.weight.fill_(float("nan"))

    got = measure(decoder, ruin, {"a": tokens}, {"calibration": tokens}, 2)
    assert got.errors == got.mse == {"calibration": math.inf}
    assert got.perplexity == {"a": math.inf}


@pytest.mark.typical_families
def test_no_digit_depends_on_the_batch(family_name: str) -> None:
    tokens = torch.randint(3, 64, (17, 20), generator=torch.Generator().manual_seed(7))
    measured = []
    for size in (1, 3, 16):
        decoder = random_decoder(family_name)
        measured.append(measure(decoder, halving(decoder), {"t": tokens}, {"s": tokens}, size))
    assert measured[0] == measured[1] == measured[2]


@pytest.mark.parametrize("n_sequences", [3, 17])
def test_where_states_wait_changes_no_digit(n_sequences: int, tmp_path: Path) -> None:
    tokens = torch.randint(3, 64, (n_sequences, 20), generator=torch.Generator().manual_seed(7))
    places = (None, Placement("disk", None, tmp_path), Placement("auto", 1e-9, tmp_path), Placement("ram"))
    measured = []
    for place in places:
        decoder = random_decoder("opt")
        measured.append(measure(decoder, halving(decoder), {}, {"s": tokens}, 2, placement=place))
    assert all(one == measured[0] for one in measured)
    assert not list(tmp_path.iterdir())
