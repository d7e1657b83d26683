"""One walk over the blocks that measures a pruned state against the dense model, with one model in memory.

Two sets of hidden states go through the blocks side by side. At each block the dense weights move the dense
states; then the caller puts the block's pruned tensors in place, and the same module moves the pruned
states. The error of a block is

    ||h_dense - h_pruned||_F^2 / ||h_dense||_F^2

over all tokens of a stream, h being the block's output: the cumulative error, as every earlier block is
pruned too. Beside it stands the mean of the same squares per element of h, in activation units
(arXiv:2406.15524, "reconstruction error").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunelab.evaluation.divergence import Divergence, divergence
from prunelab.evaluation.perplexity import perplexity
from prunelab.models.activation import Placement, Shelf, open_shelf
from prunelab.models.compare import relative_error, squares
from prunelab.models.decoder import Decoder
from prunelab.models.stream import advance, fork, open_stream

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Measurement:
    """``perplexity``: per corpus. ``blocks``: rows {block, stream, error, mse, error_sq, norm_sq}. ``errors``
    and ``mse``: per stream, the last block's; ``divergences``: per stream, of the next-token distributions. All floats;
    ``inf`` where a model gives no finite number.
    """

    perplexity: dict[str, float]
    blocks: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    mse: dict[str, float] = field(default_factory=dict)
    divergences: dict[str, Divergence] = field(default_factory=dict)


def measure(
    decoder: Decoder,
    apply_block: Callable[[int], None] | None,
    text: Mapping[str, Tensor],
    streams: Mapping[str, Tensor],
    batch_size: int,
    progress: Progress | None = None,
    placement: Placement | None = None,
) -> Measurement:
    """Per-block errors on ``streams`` and perplexity on ``text`` (token tensors (n, L) by name) of a pruned
    model.

    ``decoder`` is dense on entry. ``apply_block(i)`` puts the pruned tensors of block i in place; it is
    called once per block, in order, so **on return the decoder is the pruned model**. With None nothing is
    pruned: perplexity only. ``progress`` gets one mapping per finished block and stream ({"event": "block",
    "block", "stream", "error"}) and per corpus ({"event": "perplexity", "corpus", "perplexity"}). ``placement``: where
    the hidden states of ``streams`` wait; None = on the model's device. No number depends on it or on ``batch_size``.
    """
    say = progress or (lambda row: None)
    rows: list[dict[str, Any]] = []
    apart: dict[str, Divergence] = {}
    if apply_block is not None:
        with open_shelf(placement or Placement("device"), decoder.dtype, decoder.device) as shelf:
            rows, apart = _walk(decoder, apply_block, streams, batch_size, shelf, say)
    scores: dict[str, float] = {}
    for corpus, tokens in text.items():
        scores[corpus] = perplexity(decoder, tokens, batch_size)
        say({"event": "perplexity", "corpus": corpus, "perplexity": scores[corpus]})
    last = len(decoder.blocks) - 1
    ends = {row["stream"]: row for row in rows if row["block"] == last}
    errors, mse = ({name: row[key] for name, row in ends.items()} for key in ("error", "mse"))
    return Measurement(scores, rows, errors, mse, apart)


@torch.no_grad()
def _walk(
    decoder: Decoder,
    apply_block: Callable[[int], None],
    streams: Mapping[str, Tensor],
    batch_size: int,
    shelf: Shelf,
    say: Progress,
) -> tuple[list[dict[str, Any]], dict[str, Divergence]]:
    dense = {name: open_stream(decoder, tokens, batch_size, shelf) for name, tokens in streams.items()}
    pruned = {name: fork(stream, shelf) for name, stream in dense.items()}
    rows: list[dict[str, Any]] = []
    for index in range(len(decoder.blocks)):
        for stream in dense.values():
            advance(decoder, index, stream)
        apply_block(index)
        for name in streams:
            advance(decoder, index, pruned[name])
            error_sq, norm_sq = squares(pruned[name], dense[name].hidden)
            count = math.prod(dense[name].hidden.shape)
            error, mse = relative_error(error_sq, norm_sq), relative_error(error_sq, float(count))
            row = {"block": index, "stream": name, "error": error, "mse": mse}
            rows.append({**row, "error_sq": error_sq, "norm_sq": norm_sq})
            say({"event": "block", "block": index, "stream": name, "error": error})
    return rows, {name: divergence(decoder, pruned[name], dense[name].hidden) for name in streams}
