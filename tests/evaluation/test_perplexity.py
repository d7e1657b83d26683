"""Perplexity against the model's own loss, and what broken models give."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.errors import DataError
from prunelab.evaluation.perplexity import from_mean_loss, perplexity
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder


def reference(decoder: Decoder, tokens: Tensor) -> float:
    with torch.no_grad():
        logits = decoder.model(tokens).logits.double()
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return math.exp(float(losses))


@pytest.mark.typical_families
@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_perplexity(decoder: Decoder, tokens: Tensor, batch_size: int) -> None:
    assert perplexity(decoder, tokens, batch_size) == pytest.approx(reference(decoder, tokens), rel=1e-5)


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    decoder.model.lm_head.weight.zero_()
    assert perplexity(decoder, tokens, 2) == pytest.approx(64, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_broken_model_is_inf(tokens: Tensor, value: float) -> None:
    decoder = random_decoder("llama")
    decoder.model.lm_head.weight[:, 0] = value
    decoder.model.lm_head.weight[3:20] *= -1
    assert perplexity(decoder, tokens, 2) == math.inf


def test_large_and_undefined_losses() -> None:
    assert from_mean_loss(1e9) == math.inf
    assert from_mean_loss(math.nan) == math.inf
    assert from_mean_loss(math.inf) == math.inf
    assert from_mean_loss(0.0) == 1.0


def test_windows_of_one_token_have_no_target() -> None:
    with pytest.raises(DataError, match="no next token"):
        perplexity(random_decoder("llama"), torch.full((3, 1), 5), 2)


def test_tokens_of_another_model(tokens: Tensor) -> None:
    with pytest.raises(DataError, match="outside the vocabulary"):
        perplexity(random_decoder("llama"), tokens + 60, 2)
