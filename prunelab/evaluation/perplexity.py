"""Perplexity over non-overlapping full windows: exp of the mean next-token loss.

Each window of L tokens is scored alone, on its L - 1 targets; all windows weigh the same, and what is left
at the end of a text is not used. This is the protocol of the GPTQ and SparseGPT code (arXiv:2210.17323,
arXiv:2301.00774).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunelab.models.compare import exact_sum
from prunelab.models.decoder import Decoder
from prunelab.models.stream import advance, open_stream, token_losses


@torch.no_grad()
def perplexity(decoder: Decoder, tokens: Tensor, batch_size: int) -> float:
    """exp(mean negative log-likelihood in nats) of ``tokens`` (n, L) over n * (L - 1) targets.

    Losses are summed in float64, a window at a time and then exactly, so that the size of a batch leaves no trace.
    A model that a method broke gives ``inf`` (NaN, overflow), never an error; tokens that cannot be scored are a
    DataError. One batch of hidden states is in memory at a time.
    """
    totals, count = list[float](), 0
    for batch in tokens.split(batch_size):
        stream = open_stream(decoder, batch, batch_size)
        for index in range(len(decoder.blocks)):
            advance(decoder, index, stream)
        losses = token_losses(decoder, stream.read(slice(None)), stream.tokens)
        totals += [float(window.double().sum()) for window in losses]
        count += losses.numel()
    return from_mean_loss(exact_sum(totals) / count)


def from_mean_loss(mean: float) -> float:
    """exp(``mean``), or ``inf`` where it is not finite or too large for a float."""
    try:
        value = math.exp(mean)
    except OverflowError:
        return math.inf
    return value if math.isfinite(value) else math.inf
