"""Methods on gradients through the whole pass: every family, counts, rounds, and a trained model that notices."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from by_conf import build
from torch import Tensor

from prunelab.api import load_model, load_tokens
from prunelab.errors import ConfigError
from prunelab.evaluation.integrity import check
from prunelab.methods.random import Random
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.models.stream import advance, open_stream, token_losses
from prunelab.passes.shots import prune
from prunelab.pattern.table import build_pattern
from prunelab.structures.state import State, state_digest
from prunelab.structures.units import trace_units

UNITS = build_pattern("units", counts="units")


METHODS = ("llm_pruner", "estimation_fusion")
each_method = pytest.mark.parametrize("name", METHODS)


def run(decoder: Decoder, method: Any, tokens: Tensor | None, *ratios: float, **options: Any) -> State:
    usual = {"pattern": UNITS, "seed": 0, "batch_size": 2, "allocation": "uniform", "propagation": "dense"}
    return prune(decoder, method, tokens, list(ratios), **{**usual, **options})


def removed(decoder: Decoder, kind: str) -> list[int]:
    """Units of a kind in every block whose columns of the output map are all 0."""
    counts = []
    for block in range(len(decoder.blocks)):
        output = trace_units(decoder, block, (kind,))[kind][-1][1]
        counts.append(int((output.lines() == 0).flatten(1).all(1).sum()))
    return counts


@each_method
def test_every_family_loses_equal_counts(name: str, family_name: str, tokens: Tensor) -> None:
    decoder = random_decoder(family_name)
    before = {site.name: site.linear.weight.clone() for site in decoder.sites()}
    state = run(decoder, build("method", name), tokens, 0.3)
    check(decoder, state)
    neurons, heads = removed(decoder, "neurons"), removed(decoder, "heads")
    n_neurons, n_heads = (
        trace_units(decoder, 0, (kind,))[kind][-1][1].index.shape[0] for kind in ("neurons", "heads")
    )
    assert neurons == [int(0.3 * n_neurons)] * 2
    assert heads == [int(0.3 * n_heads)] * 2
    for site in decoder.sites():  # what stays is what it was
        kept = site.linear.weight != 0
        assert torch.equal(site.linear.weight[kept], before[site.name][kept])


@each_method
def test_protected_blocks_lose_nothing_and_one_ranking_meets_its_budget(name: str, tokens: Tensor) -> None:
    decoder = random_decoder("llama", num_hidden_layers=4)
    total = sum(site.linear.weight.numel() for site in decoder.sites())
    pattern = build_pattern("units", counts="decoder", protect_first=1, protect_last=1)
    run(decoder, build("method", name), tokens, 0.2, pattern=pattern, allocation="global")
    neurons, heads = removed(decoder, "neurons"), removed(decoder, "heads")
    assert neurons[0] == neurons[3] == heads[0] == heads[3] == 0
    gone = sum(neurons) * 3 * 24 + sum(heads) * 6 * 6 * 24
    assert abs(gone - 0.2 * total) <= 6 * 6 * 24


@each_method
def test_several_rounds_only_grow_and_batches_do_not_matter(name: str, tokens: Tensor) -> None:
    digests = set()
    for size in (1, 5):
        decoder = random_decoder("qwen2")
        digests.add(state_digest(run(decoder, build("method", name), tokens, 0.25, 0.5, batch_size=size)))
        assert removed(decoder, "neurons") == [20, 20]
        assert removed(decoder, "heads") == [1, 1]
    assert len(digests) == 1


@each_method
def test_gradients_are_of_the_dense_model(name: str, tokens: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"sparsity.propagation='pruned'.*dense with method="):
        run(random_decoder("llama"), build("method", name), tokens, 0.25, propagation="pruned")


@cache
def calibration() -> Tensor:
    return load_tokens(load_model("embedded_llama"), "austen", n_samples=10, seq_len=64)


@torch.no_grad()
def loss_after(method: Any, seed: int = 0) -> float:
    """The calibration loss of the embedded model, 3.28 when dense, without a quarter of its units."""
    decoder = load_model("embedded_llama").decoder
    run(decoder, method, calibration(), 0.25, seed=seed, batch_size=10)
    stream = open_stream(decoder, calibration(), 10)
    for index in range(len(decoder.blocks)):
        advance(decoder, index, stream)
    return float(token_losses(decoder, stream.read(slice(0, 10)), calibration()).mean())


def test_a_trained_model_loses_less_than_at_random() -> None:
    at_random = sum(loss_after(Random("random", 1, None), seed) for seed in range(3)) / 3
    for name in METHODS:
        assert loss_after(build("method", name)) < at_random - 0.2, name
