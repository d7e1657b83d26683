"""The two streams of a token set: hidden states of the dense model and of the pruned one, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.models.activation import Activations, Shelf
from prunelab.models.decoder import Decoder
from prunelab.models.stream import Stream, call_block, fork, open_stream


@dataclass(frozen=True, eq=False)
class Streams:
    """Inputs of the next block for n sequences: ``dense`` by the untouched model, ``pruned`` by the blocks as
    pruned and repaired so far.
    """

    decoder: Decoder
    dense: Stream
    pruned: Stream

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, seq_len, d)."""
        return self.pruned.hidden.shape

    @property
    def like(self) -> Tensor:
        """An empty tensor with the model's dtype and device."""
        return self.pruned.like

    def batches(self) -> Iterator[slice]:
        """The sequences of each batch."""
        return self.pruned.batches()

    def run(self, blocks: range, hidden: Tensor) -> Tensor:
        """Pass ``hidden`` (b, seq_len, d) through ``blocks`` with the weights in place; autograd works through
        it."""
        for index in blocks:
            hidden = call_block(self.decoder, index, self.pruned, hidden)
        return hidden

    @torch.no_grad()
    def transform(self, source: Stream, goal: Activations, blocks: range) -> None:
        """Write what ``blocks`` make of ``source`` into ``goal``."""
        for rows in self.batches():
            goal.write(rows, self.run(blocks, source.read(rows)))


def open_streams(decoder: Decoder, tokens: Tensor, batch_size: int, shelf: Shelf) -> Streams:
    """Embed ``tokens`` (n, seq_len) int64 and return both streams at the input of block 0."""
    dense = open_stream(decoder, tokens, batch_size, shelf)
    return Streams(decoder, dense, fork(dense, shelf))
