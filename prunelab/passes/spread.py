"""How an allocation that looks at the model spreads the ratio over its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunelab.allocation.base import Allocation
from prunelab.errors import ModelError
from prunelab.models.activation import Shelf
from prunelab.models.decoder import Decoder
from prunelab.passes.collect import Needs, blocks_of
from prunelab.passes.source import Source

_OFF = 1e-6  # between the mean of an allocation's ratios and the ratio asked for


def block_ratios(
    decoder: Decoder, allocation: Allocation, ratio: float, source: Source, spread: Needs, shelf: Shelf,
    say: Callable[[str, int, int], None],
) -> list[float]:  # fmt: skip
    """Return every block's ratio by an allocation that looks at the dense model first, through ``spread`` of ``source``.

    ``say(phase, done, total)`` is told how far it is. Raises ModelError for ratios that do not keep to ``ratio``.
    """
    n_blocks = len(decoder.blocks)
    looking, shares = source.fork(spread, shelf), list[Any]()
    for index, more in blocks_of(decoder):
        values = looking.block(decoder, index, advancing=more)
        scores = [
            site.linear.weight.detach().abs().float() * values[site.name]["input_norm"]
            for site in decoder.sites(index)
        ]
        shares.append(allocation.share(scores))
        say("allocation", index + 1, n_blocks)
    looking.close(shelf)
    ratios = [float(one) for one in allocation.ratios(shares, ratio)]
    mean = sum(ratios) / max(1, len(ratios))
    if len(ratios) != n_blocks or not all(0 <= one < 1 for one in ratios) or abs(mean - ratio) > _OFF:
        raise ModelError(
            f"allocation {allocation.name}: ratios() gave {len(ratios)} with the mean {mean:.6g}; wanted are {n_blocks}, "
            f"each 0 <= x < 1, with the mean {ratio:.6g}, the ratio that was asked for."
        )
    return ratios
