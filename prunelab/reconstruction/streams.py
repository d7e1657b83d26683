"""The two streams of a token set: hidden states of the dense model and of the pruned one, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.models.activation import Activations, Shelf
from prunelab.models.decoder import Decoder
from prunelab.models.stream import Arguments, capture, check_tokens, run_block


@dataclass(eq=False)
class Streams:
    """Inputs of the next block for n sequences: ``dense`` by the untouched model, ``pruned`` by the blocks as
    pruned and repaired so far.

    ``like``: an empty tensor with the model's dtype and device. ``arguments``: of all blocks, by number of
    sequences in a batch.
    """

    decoder: Decoder
    tokens: Tensor
    batch_size: int
    dense: Activations
    pruned: Activations
    like: Tensor
    arguments: dict[int, tuple[Arguments, ...]]

    @property
    def n(self) -> int:
        """Number of sequences."""
        return self.tokens.shape[0]

    def batches(self) -> Iterator[slice]:
        """The sequences of each batch."""
        for start in range(0, self.n, self.batch_size):
            yield slice(start, min(start + self.batch_size, self.n))

    def run(self, blocks: range, hidden: Tensor) -> Tensor:
        """Pass ``hidden`` (b, seq_len, d) through ``blocks`` with the weights in place; autograd works through
        it."""
        rows = hidden.shape[0]
        if rows not in self.arguments:
            batch = self.tokens[torch.arange(rows) % self.n].to(self.decoder.device)
            self.arguments[rows] = capture(self.decoder, batch)[1]
        for index in blocks:
            hidden = run_block(self.decoder, index, self.arguments[rows], hidden)
        return hidden

    @torch.no_grad()
    def transform(self, source: Activations, goal: Activations, blocks: range) -> None:
        """Write what ``blocks`` make of ``source`` into ``goal``, which may be the same store."""
        for rows in self.batches():
            goal.write(rows, self.run(blocks, source.read(rows, self.like)))

    @torch.no_grad()
    def compare(self, transform: Callable[[Tensor], Tensor], target: Activations) -> tuple[float, float]:
        """Return ``||target - transform(pruned)||^2`` and ``||target||^2``, summed in float64."""
        error = norm = 0.0
        for rows in self.batches():
            wide = target.read(rows, self.like).double()
            norm += float(wide.square().sum())
            error += float((wide - transform(self.pruned.read(rows, self.like)).double()).square().sum())
        return error, norm


@torch.no_grad()
def open_streams(decoder: Decoder, tokens: Tensor, batch_size: int, shelf: Shelf) -> Streams:
    """Embed ``tokens`` (n, seq_len) int64 and return both streams at the input of block 0."""
    check_tokens(decoder, tokens, batch_size)
    stores: list[Activations] = []
    arguments: dict[int, tuple[Arguments, ...]] = {}
    like = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
    for start in range(0, tokens.shape[0], batch_size):
        rows = slice(start, min(start + batch_size, tokens.shape[0]))
        hidden, found = capture(decoder, tokens[rows].to(decoder.device))
        arguments.setdefault(hidden.shape[0], found)
        if not stores:
            stores = [shelf.build(tokens.shape[0], *hidden.shape[1:]) for _ in range(2)]
        for store in stores:
            store.write(rows, hidden)
    return Streams(decoder, tokens, batch_size, stores[0], stores[1], like, arguments)
