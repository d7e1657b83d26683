"""Random: every row and column, every weight, or every unit draws its cost uniformly from [0, 1). The floor that any
method must beat, of whole blocks and sub-layers too (``sparsity.kinds=[blocks] allocation=global``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.stats.unit_view import UnitView
from prunelab.stats.view import View


@dataclass(frozen=True)
class Random:
    """Costs from the layer's own generator, the same for the same seed, layer and shot."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]

    scope = "linear"
    needs = ()
    supports = ("rows_columns", "unstructured", "n:m", "units")
    units = ("neurons", "heads", "blocks", "attention", "ffn")
    within = "row"

    def score(self, view: View) -> Tensor:
        """Return scores (R, C) in [0, 1), float32, drawn layer by layer."""
        columns = view.W.shape[1]
        drawn = [
            torch.rand(rows, columns, generator=generator)
            for rows, generator in zip(view.rows, view.generators, strict=True)
        ]
        return torch.cat(drawn).to(view.W.device)

    def costs(self, view: View) -> tuple[Tensor, Tensor]:
        """Return row costs (r,) and column costs (c,) in [0, 1), float64."""
        r, c = view.W.shape
        draw = torch.rand(r + c, generator=view.generator, dtype=torch.float64)
        return draw[:r], draw[r:]

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit in [0, 1), float64."""
        return torch.rand(view.count, generator=view.generator, dtype=torch.float64)

    def update(self, view: View, keep_rows: Tensor, keep_columns: Tensor) -> None:
        """Leave the kept weights alone."""
