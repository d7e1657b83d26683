"""What a method sees of a block: its layers by shared input, with statistics from wherever those come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from prunelab.errors import ModelError
from prunelab.methods.base import LinearMethod
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.inputs import collect_inputs, groups
from prunelab.models.stream import Stream
from prunelab.passes.statistics import Statistics
from prunelab.stats.linear import Hessian, InputStatistics, LinearView, site_generator

Source = (
    Stream | Statistics | None
)  # a stream to collect from, or what was collected; None: nothing is needed


def found_of(
    decoder: Decoder, index: int, source: Source, needs: Sequence[str], *, go_on: bool
) -> Sequence[InputStatistics]:
    """Return the statistics of block ``index``, one per group of layers; ``go_on``: move a stream on, with the
    weights in place."""
    if isinstance(source, Stream):
        return [sums.finish() for sums in collect_inputs(decoder, index, source, needs, go_on=go_on)]
    return cast(Statistics, source).block(decoder, index)


@dataclass(frozen=True, eq=False)
class Views:
    """The views of ``method`` on a decoder."""

    decoder: Decoder
    method: LinearMethod
    seed: int
    source: Source

    def block(self, index: int, *, go_on: bool) -> Iterator[tuple[tuple[LinearSite, ...], LinearView]]:
        """Yield the groups of block ``index`` with their views; ``go_on`` as in :func:`found_of`.

        All statistics are there before the first view comes, and each is let go with its view. Raises ModelError
        naming the layer whose input is not finite.
        """
        members = groups(self.decoder, index)
        found = [InputStatistics(None, None)] * len(members)
        if self.method.needs:
            found = list(found_of(self.decoder, index, self.source, self.method.needs, go_on=go_on))
        for group in members:
            yield group, self._view(group, found.pop(0))

    def _view(self, group: Sequence[LinearSite], statistics: InputStatistics) -> LinearView:
        names = tuple(site.name for site in group)
        norm, gram = statistics.norm, statistics.gram
        for found in (norm, None if gram is None else gram.diagonal()):
            if found is not None and not bool(torch.isfinite(found).all()):
                raise ModelError(
                    f"what enters {names[0]} is not finite. Check the checkpoint and the calibration text, "
                    "or use model.dtype=float32."
                )
        weights = [site.linear.weight.detach() for site in group]
        return LinearView(
            names=names,
            rows=tuple(weight.shape[0] for weight in weights),
            W=weights[0] if len(weights) == 1 else torch.cat(weights),
            norm=norm,
            hessian=None if gram is None else Hessian(gram, names[0]),
            generators=tuple(site_generator(self.seed, name, 1) for name in names),
        )
