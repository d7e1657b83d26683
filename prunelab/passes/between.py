"""Masks between repairs: a block is pruned when a repair comes to it, on the stream of the blocks as repaired by then.

As the published reconstruction does it (arXiv:2406.15524, section 2 and its code): statistics come from one pass of the
pruned model's stream through the block, with that block's weights still dense, for all of its layers at once, on the
tokens that masks are chosen on and no others. A block that a repair takes up before those ahead of it are finished
(overlapping windows) sees them as they are then. It keeps that first mask; the published code chooses anew in every
round, on weights in which what was removed is zero and so goes again.

Only patterns whose choice is made block by block come here, with an allocation that knows every block's ratio from the
start: see ``prunelab.pattern.between_error``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.distributed.group import ALONE
from prunelab.models.activation import Shelf
from prunelab.models.decoder import Decoder
from prunelab.passes.arguments import Spread, check_run
from prunelab.passes.choosers import chooser_of
from prunelab.passes.pseudo import divided
from prunelab.passes.shots import Walk
from prunelab.passes.source import Source
from prunelab.passes.step import OnStep
from prunelab.pattern.base import Pattern, between_error
from prunelab.structures.state import SiteState, State


@dataclass(frozen=True, eq=False)
class Between:
    """How blocks shall be pruned, one at a time; fields as the arguments of :func:`prunelab.passes.shots.prune`.

    ``on_step(report, state)`` is told of every block that is pruned.
    """

    method: Any
    tokens: Tensor | None
    ratio: float
    pattern: Pattern
    seed: int
    batch_size: int
    allocation: Spread | None = None
    on_step: OnStep | None = None
    progress: Callable[[Mapping[str, Any]], None] | None = None
    domains: Sequence[Tensor] = ()

    def open(self, decoder: Decoder, shelf: Shelf) -> BlockPruner:
        """Return who prunes the blocks of ``decoder``, which is dense; hidden states wait in ``shelf``.

        An allocation with numbers looks at the dense model here. Raises ConfigError for what does not fit together.
        """
        allocation = self.pattern.default_allocation if self.allocation is None else self.allocation
        name = allocation if isinstance(allocation, str) else allocation.name
        error = between_error(self.pattern, name, "pruned")
        if error is not None:
            raise error
        check_run(
            decoder,
            self.method,
            self.pattern,
            [self.ratio],
            allocation,
            "pruned",
            self.tokens,
            None,
            self.domains,
        )
        walk = Walk(
            decoder, self.method, chooser_of(self.pattern, decoder), self.seed, self.batch_size, shelf, ALONE, self.progress,
            self.on_step, self.pattern.needs,
            divided(decoder, self.method, self.tokens, self.domains, self.batch_size, shelf),
        )  # fmt: skip
        source, ratios = walk.begin(self.tokens, None, allocation, self.ratio)
        return BlockPruner(walk, source, ratios)


@dataclass(eq=False)
class BlockPruner:
    """Prunes one block after the other. ``position``: the block that the stream of the mask's tokens is about to enter."""

    walk: Walk
    source: Source
    ratios: list[float]
    position: int = 0

    @torch.no_grad()
    def prune(self, index: int) -> State:
        """Return block ``index`` as pruned, in memory of its own; its dense weights are in place before and after.

        Blocks from ``position`` to the one before it are taken as they are.
        """
        began = time.perf_counter()
        sites = self.walk.decoder.sites(index)
        dense = [(site.linear.weight.data, site.linear.bias) for site in sites]
        try:
            for site in sites:
                site.linear.weight.data = site.linear.weight.data.clone()
                if site.linear.bias is not None:
                    site.linear.bias = nn.Parameter(site.linear.bias.detach().clone(), requires_grad=False)
            with self._at(index) as source:
                pruned = self.walk.prune_block(index, source, self.ratios[index], advancing=False)
            self.walk.tell_block(index, self.ratios[index], pruned, began)
            items = {}
            for site in sites:
                bias = None if site.linear.bias is None else site.linear.bias.detach().clone()
                items[site.name] = SiteState(site.linear.weight.detach(), bias, pruned.masks[site.name])
        finally:
            for site, (weight, bias) in zip(sites, dense, strict=True):
                site.linear.weight.data, site.linear.bias = weight, bias
        return State(self.walk.decoder.name, items)

    def advance(self, index: int) -> None:
        """Move on through block ``index``, the one at ``position``, with the weights in place."""
        if self.walk.needs.statistics:
            self.source.advance(self.walk.decoder, index)
        self.position = index + 1

    @contextmanager
    def _at(self, index: int) -> Iterator[Source]:
        """Yield the statistics' source at the input of block ``index``."""
        if index == self.position:
            yield self.source
            return
        ahead = self.source.fork(self.walk.needs, self.walk.shelf)
        try:
            for block in range(self.position, index):
                ahead.advance(self.walk.decoder, block)
            yield ahead
        finally:
            ahead.close(self.walk.shelf)
