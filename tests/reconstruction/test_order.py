"""What the paper finds, on small models: each step fits the calibration text better (arXiv:2406.15524).

The slow test is the reference experiment: a random four-block OPT of width 32 on a Markov chain of 50 tokens,
Wanda masks at 50 %, 20 epochs. Its test error is on fresh sequences of the same chain. The rate is 5e-3, since
8 sequences allow 20 updates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelab.api import load_model, load_tokens
from prunelab.evaluation.walk import measure
from prunelab.methods.wanda import Wanda
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.weights import Unstructured
from prunelab.reconstruction.walk import reconstruct
from prunelab.structures.state import State, apply_state

Make = Callable[..., Any]
ORDER = ["none", "layer", "block", "block_gp", "cross_block"]
FREE = Unstructured()


def errors(
    load: Callable[[], Any], state: State, tokens: Tensor, test: Tensor, specs: dict[str, Any]
) -> dict[str, tuple[float, float]]:
    """Relative error of the last block by variant: calibration, test."""
    found = {}
    for name in ORDER:
        out = state
        if name != "none":
            out = reconstruct(load(), state, tokens, specs[name], seed=0, batch_size=32).clone()
        decoder = load()
        rows = measure(decoder, partial(apply_state, decoder, out), {}, {"calib": tokens, "test": test}, 32)
        found[name] = rows.errors["calib"], rows.errors["test"]
    return found


def chain(n: int, seed: int) -> Tensor:
    """Sequences (n, 24) of one sparse Markov chain over 50 tokens."""
    moves = torch.rand(50, 50, generator=torch.Generator().manual_seed(9)).pow(8)
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(0, 50, (n,), generator=generator)]
    for _ in range(23):
        tokens.append(torch.multinomial(moves[tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, 1)


@pytest.mark.slow
def test_calibration_error_falls_in_order_on_the_embedded_llama(spec: Make) -> None:
    model = load_model("embedded_llama")
    tokens = load_tokens(model, "austen", n_samples=8, seq_len=64)
    test = load_tokens(model, "kjv", n_samples=8, seq_len=64, role="held_out")
    state = prune(
        model.decoder, Wanda("wanda", 1, None), tokens, [0.5], pattern=FREE, seed=0, batch_size=8
    ).clone()
    short = {"epochs": 12, "batch": 2, "learning_rate": 1e-3}
    specs = {name: spec(name, **({} if name == "layer" else short)) for name in ORDER[1:]}
    found = errors(lambda: load_model("embedded_llama").decoder, state, tokens, test, specs)
    for before, after in itertools.pairwise(ORDER):
        assert found[after][0] < found[before][0], found
    overfitting = [found[name][1] / found[name][0] for name in ORDER]
    assert overfitting == sorted(overfitting), found


@pytest.mark.slow
def test_the_reference_experiment(spec: Make) -> None:
    config = {"num_hidden_layers": 4, "hidden_size": 32, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    config |= {"ffn_dim": 128, "vocab_size": 50}
    load = partial(random_decoder, "opt", **config)
    rates = {"epochs": 20, "batch": 8, "learning_rate": 5e-3}
    specs = {name: spec(name, **({} if name == "layer" else rates)) for name in ORDER[1:]}
    test, gaps = chain(256, 1000), {}
    for n in (8, 64, 256):
        tokens = chain(n, n)
        state = prune(
            load(), Wanda("wanda", 1, None), tokens, [0.5], pattern=FREE, seed=0, batch_size=32
        ).clone()
        found = errors(load, state, tokens, test, specs)
        gaps[n] = [found[name][1] / found[name][0] for name in ORDER]
        for before, after in itertools.pairwise(ORDER):
            assert found[after][0] < found[before][0], (n, found)
        assert found["block"][0] <= 0.6 * found["layer"][0], (n, found)
        assert found["cross_block"][0] <= 0.3 * found["layer"][0], (n, found)
        assert gaps[n] == sorted(gaps[n]), (n, gaps)
    for few, many in ((8, 64), (64, 256)):
        assert all(a > b for a, b in zip(gaps[few][1:], gaps[many][1:], strict=True)), gaps
