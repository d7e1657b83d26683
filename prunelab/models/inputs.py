"""What enters and leaves the linear layers of one block while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder

Hear = Callable[[Tensor], None]


class Enough(Exception):
    """Leaves a block once every input has been seen."""


def groups(decoder: Decoder, index: int) -> list[tuple[LinearSite, ...]]:
    """Return the layers of block ``index`` by shared input, in forward order."""
    members: dict[int, list[LinearSite]] = {}
    for site in decoder.sites(index):
        members.setdefault(site.shared, []).append(site)
    return [tuple(sites) for sites in members.values()]


@contextmanager
def catch_inputs(
    members: Sequence[tuple[LinearSite, ...]], hear: Sequence[Hear], stop: bool = False
) -> Iterator[None]:
    """While open, give ``hear[i]`` the input (b, seq_len, C) of group i whenever it runs.

    ``stop``: the last group's input ends the block's forward with Enough, before its product.
    """
    handles = []

    def listen(take: Hear, last: bool) -> Callable[..., None]:
        def hook(module: object, args: tuple[Tensor, ...]) -> None:
            take(args[0].detach())
            if last:
                raise Enough

        return hook

    try:
        for i, (sites, take) in enumerate(zip(members, hear, strict=True)):
            hook = listen(take, stop and i == len(members) - 1)
            handles.append(sites[0].linear.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def catch_outputs(sites: Sequence[LinearSite], hear: Sequence[Hear]) -> Iterator[None]:
    """While open, give ``hear[i]`` the output (b, seq_len, R) of layer i whenever it runs, still in the graph."""
    handles = []

    def listen(take: Hear) -> Callable[..., None]:
        return lambda module, args, output: take(output)

    try:
        for site, take in zip(sites, hear, strict=True):
            handles.append(site.linear.register_forward_hook(listen(take)))
        yield
    finally:
        for handle in handles:
            handle.remove()
