"""What one step of a pruning tells whoever listens: a shot of the whole model, or a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.passes.chooser import Tables
from prunelab.sparsity.mask import Mask
from prunelab.structures.state import SiteState, State


@dataclass(frozen=True)
class StepReport:
    """What one step did. ``shot`` counts from 1; ``block``: the block that is finished, None for the whole model.

    ``target``: removed fraction of the weights asked for; ``achieved``: of the model's weights after a shot, of the
    block's after a block; ``threshold``: price of the dearest structure removed, None without one; ``sites``: rows
    {site, block, path, rows, columns, rows_removed, columns_removed, removed, total}; ``seconds``: wall time; ``tables``:
    why these structures, in the words of a method that says so, rows by name.
    """

    shot: int
    block: int | None
    target: float
    achieved: float
    threshold: float | None
    sites: list[dict[str, Any]]
    seconds: float
    tables: Tables = field(default_factory=dict)


OnStep = Callable[[StepReport, State], None]


def state_of(decoder: Decoder, sites: Sequence[LinearSite], masks: Mapping[str, Mask]) -> Callable[[], State]:
    """Return what gives the state of some layers as they are then, which shares their memory."""

    def state() -> State:
        items = {}
        for site in sites:
            bias = site.linear.bias
            bias = None if bias is None else bias.detach()
            items[site.name] = SiteState(site.linear.weight.detach(), bias, masks[site.name])
        return State(decoder.name, items)

    return state


def site_row(site: LinearSite, mask: Mask) -> dict[str, Any]:
    """Return what the table of layers says of one."""
    return {"site": site.name, "block": site.block, "path": site.path, **mask.counts()}
