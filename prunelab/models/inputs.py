"""Statistics of what enters the linear layers of one block, one per group of layers with the same input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.stream import Stream, advance, call_block
from prunelab.stats.group import sum_over
from prunelab.stats.kronecker import GramSum
from prunelab.stats.linear import InputStatistics, NormSum

KNOWN = ("input_norm", "input_gram")


class Sums:
    """Running statistics of one input (tokens, C); ``ones`` adds a last entry 1 to the Gram's inputs."""

    def __init__(self, like: LinearSite, needs: Collection[str], ones: bool = False) -> None:
        width, device = like.linear.in_features, like.linear.weight.device
        self.norm = NormSum(width, device=device) if "input_norm" in needs else None
        self.gram = GramSum(width, ones=ones, device=device) if "input_gram" in needs else None

    def add(self, x: Tensor) -> None:
        """Add the tokens of ``x`` (..., C)."""
        if self.norm is not None:
            self.norm.add(x)
        if self.gram is not None:
            self.gram.add(x)

    def finish(self) -> InputStatistics:
        """Return the averages over all tokens. Uses up the sums."""
        norm = None if self.norm is None else self.norm.finish()
        return InputStatistics(norm, None if self.gram is None else self.gram.mean())


class _Enough(Exception):
    """Leaves a block once every input has been seen."""


def groups(decoder: Decoder, index: int) -> list[tuple[LinearSite, ...]]:
    """Return the layers of block ``index`` by shared input, in forward order."""
    found: dict[int, list[LinearSite]] = {}
    for site in decoder.sites(index):
        found.setdefault(site.shared, []).append(site)
    return [tuple(members) for members in found.values()]


@contextmanager
def catch_inputs(
    members: list[tuple[LinearSite, ...]], hear: list[Callable[[Tensor], None]], stop: bool = False
) -> Iterator[None]:
    """While open, give ``hear[i]`` the input (b, seq_len, C) of group i whenever it runs.

    ``stop``: the last group's input ends the block's forward with _Enough, before its product.
    """
    handles = []

    def listen(take: Callable[[Tensor], None], last: bool) -> Callable[..., None]:
        def hook(module: object, args: tuple[Tensor, ...]) -> None:
            take(args[0].detach())
            if last:
                raise _Enough

        return hook

    try:
        for i, (group, take) in enumerate(zip(members, hear, strict=True)):
            hook = listen(take, stop and i == len(members) - 1)
            handles.append(group[0].linear.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def collect_inputs(
    decoder: Decoder, index: int, stream: Stream, needs: Collection[str], *, go_on: bool
) -> list[Sums]:
    """Return the statistics of block ``index`` on ``stream``, one per group of :func:`groups`.

    ``go_on`` moves the stream through the block; without it the stream stays, and what follows the last
    layer's input is not computed. The weights are those in place. Sums are over the streams of all ranks.
    """
    unknown = set(needs) - set(KNOWN)
    if unknown:
        raise ConfigError("method.needs", sorted(unknown), " | ".join(KNOWN))
    members = groups(decoder, index)
    sums = [Sums(layers[0], needs) for layers in members]
    with catch_inputs(members, [found.add for found in sums], stop=not go_on):
        if go_on:
            advance(decoder, index, stream)
        for rows in () if go_on else stream.batches():
            with suppress(_Enough):
                call_block(decoder, index, stream, stream.read(rows))
    sum_over(stream.group, [one for found in sums for one in (found.norm, found.gram) if one is not None])
    return sums
