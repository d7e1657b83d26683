"""Token sets to compare made of the mask's own, for a method that says so and is given no other text (arXiv:2603.13418)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunelab.generalization.pseudo import clusters
from prunelab.models.activation import Shelf
from prunelab.models.decoder import Decoder
from prunelab.models.stream import advance, open_stream

PSEUDO = "pseudo_domains"  # the field of a method: into how many sets; None = none


@torch.no_grad()
def divided(
    decoder: Decoder, method: Any, tokens: Tensor | None, domains: Sequence[Tensor], batch_size: int, shelf: Shelf
) -> Sequence[Tensor]:  # fmt: skip
    """Return ``domains``, or where there are none the sets that ``tokens`` (n, seq_len) fall into; ``decoder`` is dense.

    One walk gives the mean final hidden state of every sequence. Several ranks do the same each.
    """
    k = getattr(method, PSEUDO, None)
    if domains or k is None or tokens is None:
        return domains
    stream = open_stream(decoder, tokens, batch_size, shelf)
    for index in range(len(decoder.blocks)):
        advance(decoder, index, stream)
    points = torch.cat([stream.read(rows).double().mean(1) for rows in stream.batches()])
    shelf.discard(stream.hidden)
    return [tokens[members.to(tokens.device)] for members in clusters(points, k)]
