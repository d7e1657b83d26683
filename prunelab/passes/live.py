"""The live part of a layer: what a method that weighs rows and columns against each other is shown, and where it goes back.

Dead: a row whose weights are all zero or which a statistic of its output says never carried a signal, and likewise a
column. The published code (arXiv:2312.17244) drops them from the problem too: they would only dilute the damping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.models.block import LinearSite
from prunelab.passes.chooser import Part
from prunelab.passes.collect import Needs
from prunelab.statistic import INPUT
from prunelab.stats.view import View


@dataclass(frozen=True, eq=False)
class LivePart:
    """Cuts layers of one block down to what is alive; layers with one input come one after the other and share the cut."""

    needs: Needs
    _latest: dict[str, tuple[Any, Tensor, Any]] = field(default_factory=dict)

    def part(
        self, site: LinearSite, values: Mapping[str, Any], generator: torch.Generator, rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Part:  # fmt: skip
        """Return the part of a layer's live ``[W  b]``; ``rows`` (R,), ``columns`` (C + bias,) bool: False is dead too."""
        live = _live(site, values, self.needs, rows, columns)
        restricted = {}
        for need, value in values.items():
            statistic, kept = self.needs.statistics[need], live[self.needs.statistics[need].reads == INPUT]
            before = self._latest.get(need)
            if before is None or before[0] is not value or not torch.equal(before[1], kept):
                before = self._latest[need] = (value, kept, statistic.restrict(value, kept))
            restricted[need] = before[2]
        W = with_bias(site.linear)[live[0]][:, live[1]]
        has_bias = site.linear.bias is not None and bool(live[1][-1])
        view = View((site.name,), (W.shape[0],), W, (generator,), restricted, has_bias)
        return Part((site,), view, live)


def with_bias(linear: nn.Linear) -> Tensor:
    """``[W  b]``, (R, C + 1), or W where there is no bias; detached."""
    weight = linear.weight.detach()
    return weight if linear.bias is None else torch.cat([weight, linear.bias.detach()[:, None]], 1)


def _live(
    site: LinearSite, values: Mapping[str, Any], needs: Needs, rows: Tensor | None, columns: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return which rows and columns of ``[W  b]`` are neither zero nor without a signal."""
    used = with_bias(site.linear) != 0
    found = used.any(1), used.any(0)
    for lines, kept in zip(found, (rows, columns), strict=True):
        if kept is not None:
            lines &= kept.to(lines.device)
    for need, value in values.items():
        statistic = needs.statistics[need]
        signal = statistic.live(value)
        if signal is not None:
            lines = found[statistic.reads == INPUT]
            lines[: signal.numel()] &= signal.to(lines.device)
    return found


@torch.no_grad()
def write_live(linear: nn.Linear, updated: Tensor, live_rows: Tensor, live_columns: Tensor) -> None:
    """Put the new live weights in their places of weight and bias; everything else stays as it is."""
    joined = with_bias(linear).clone()
    rows, columns = live_rows.nonzero(), live_columns.nonzero()[:, 0]
    joined[rows, columns] = updated.to(joined.dtype)
    linear.weight.copy_(joined[:, : linear.in_features])
    if linear.bias is not None:
        linear.bias.copy_(joined[:, -1])
