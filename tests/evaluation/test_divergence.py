"""KL and change of loss of next tokens, against two separate models' whole logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.evaluation import divergence as module
from prunelab.evaluation.walk import measure
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder


def _break(decoder: Decoder, index: int, factor: float = 0.0) -> None:
    with torch.no_grad():
        for site in decoder.sites(index):
            site.linear.weight[::2] *= factor


@pytest.mark.parametrize("few", [False, True])
def test_both_are_means_over_all_next_tokens(
    family_name: str, tokens: Tensor, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if few:  # logits of one position at a time
        monkeypatch.setattr(module, "LOGIT_VALUES", 1)
    dense, pruned, decoder = (random_decoder(family_name) for _ in range(3))
    for index in range(2):
        _break(pruned, index)
    with torch.no_grad():
        p, q = (
            F.log_softmax(one.model(input_ids=tokens, use_cache=False).logits[:, :-1].double(), -1)
            for one in (dense, pruned)
        )
    kl = (p.exp() * (p - q)).sum(-1).mean()
    change = (p - q).gather(2, tokens[:, 1:, None]).mean()
    streams = {"calibration": tokens}
    found = measure(decoder, lambda index: _break(decoder, index), {}, streams, 2).divergences["calibration"]
    assert found.kl == pytest.approx(float(kl), rel=1e-4)
    assert found.kl > 0
    assert found.loss_change == pytest.approx(float(change), rel=1e-3, abs=1e-6)


def test_nothing_removed_is_no_divergence_and_a_broken_model_has_no_number(tokens: Tensor) -> None:
    streams = {"calibration": tokens}
    decoder = random_decoder("llama")
    same = measure(decoder, lambda index: None, {}, streams, 2).divergences["calibration"]
    assert (same.kl, same.loss_change) == (0.0, 0.0)
    broken = measure(decoder, lambda index: _break(decoder, index, math.nan), {}, streams, 2)
    assert broken.divergences["calibration"].kl == math.inf
    assert broken.divergences["calibration"].loss_change == math.inf
