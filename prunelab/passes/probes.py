"""What removing a few units does to the loss: measured, block by block, for fits of prunelab.importance.probe.

One walk of the dense model serves all probes: where a probe's block comes, a copy of the stream goes through that block
without the units and through the later ones as they are. So a probe of block l costs the blocks from l on and the
head, half a forward on average, and the memory of one more stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.distributed.group import ALONE, Group
from prunelab.importance.fusion import Population
from prunelab.importance.probe import Probe, draw_probes
from prunelab.models.activation import Placement, open_shelf
from prunelab.models.decoder import Decoder
from prunelab.models.stream import Stream, advance, fork, open_stream, token_losses
from prunelab.passes.collect import Progress
from prunelab.stats.unit_view import Member, UnitView


@dataclass(frozen=True, eq=False)
class Removal:
    """Units of one kind that are left out of one block: ``units`` (k,) int64, of ``members``."""

    block: int
    members: tuple[Member, ...]
    units: Tensor


def measure_probes(
    decoder: Decoder, tokens: Tensor, views: Sequence[UnitView], populations: Sequence[Population], n: int,
    fraction: float, batch_size: int, generator: torch.Generator, *, placement: Placement | None = None,
    progress: Progress | None = None, group: Group = ALONE,
) -> list[Probe]:  # fmt: skip
    """Return ``n`` probes, each without ``fraction`` of the units of one population, and what that did to the loss.

    ``populations``: those of the units of each view that are alive, in the order of ``views``. ``generator``: on the
    CPU, the same on every rank.
    """
    drawn = draw_probes(populations, n, fraction, generator)
    removals = []
    for index, units in drawn:
        alive = views[index].alive.cpu().nonzero()[:, 0]
        removals.append(Removal(views[index].block, views[index].members, alive[units]))
    changes = loss_changes(
        decoder, tokens, removals, batch_size, placement=placement, progress=progress, group=group
    )
    return [Probe(index, units, change) for (index, units), change in zip(drawn, changes, strict=True)]


@torch.no_grad()
def loss_changes(
    decoder: Decoder, tokens: Tensor, removals: Sequence[Removal], batch_size: int, *,
    placement: Placement | None = None, progress: Progress | None = None, group: Group = ALONE,
) -> list[float]:  # fmt: skip
    """Return by how much the mean token loss on ``tokens`` (n, seq_len) int64 rises with each removal, in nats.

    ``placement``: where hidden states wait; None = on the model's device. The decoder is left as it was, to the bit.
    Of several ranks in ``group`` each walks its share, and all get the changes of the whole.
    """
    in_block: Mapping[int, list[int]] = {index: [] for index in range(len(decoder.blocks))}
    for number, removal in enumerate(removals):
        in_block[removal.block].append(number)
    sums = torch.zeros(len(removals) + 2, dtype=torch.float64)  # of losses; the last two: dense, and targets
    done = 0
    with open_shelf(placement or Placement("device"), decoder.dtype, decoder.device) as shelf:
        stream = open_stream(decoder, tokens, batch_size, shelf, group)
        for index, numbers in in_block.items():
            for number in numbers:
                branch = fork(stream, shelf)
                with _without(decoder, removals[number]):
                    advance(decoder, index, branch)
                sums[number] = _rest(decoder, index + 1, branch)
                shelf.discard(branch.hidden)
                done += 1
                if progress is not None:
                    row = {"event": "progress", "phase": "probes", "done": done, "total": len(removals)}
                    progress(row)
            advance(decoder, index, stream)
        sums[-2] = _rest(decoder, len(in_block), stream)
        sums[-1] = stream.tokens[:, 1:].numel()
    group.sum([sums])
    return ((sums[:-2] - sums[-2]) / sums[-1]).tolist()


def _rest(decoder: Decoder, start: int, stream: Stream) -> float:
    """Return the summed token losses after the blocks from ``start`` on; a sequence at a time, so batches do not matter."""
    for index in range(start, len(decoder.blocks)):
        advance(decoder, index, stream)
    total = 0.0
    for rows in stream.batches():
        for losses in token_losses(decoder, stream.read(rows), stream.tokens[rows]):
            total += float(losses.double().sum())
    return total


@contextmanager
def _without(decoder: Decoder, removal: Removal) -> Iterator[None]:
    """While open, the units' lines are 0 in every member; afterwards they are what they were."""
    kept: list[tuple[Tensor, int, Tensor, Tensor]] = []
    try:
        for member in removal.members:
            linear = decoder.site(member.site).linear
            lines = member.index[removal.units].reshape(-1).to(linear.weight.device)
            parts = [(linear.weight.data, member.axis)]
            if member.axis == 0 and linear.bias is not None:
                parts.append((linear.bias.data, 0))
            for tensor, axis in parts:
                kept.append((tensor, axis, lines, tensor.index_select(axis, lines)))
                tensor.index_fill_(axis, lines, 0.0)
        yield
    finally:
        for tensor, axis, lines, values in reversed(kept):
            tensor.index_copy_(axis, lines, values)
