"""Magnitude: the norm of a row or column (baseline of arXiv:2312.17244, not squared there), or of a weight.

Single weights compete inside the whole matrix, as in arXiv:2406.15524.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.stats.view import View


@dataclass(frozen=True)
class Magnitude:
    """Costs from the weights alone; needs no calibration."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]

    scope = "linear"
    needs = ()
    supports = ("rows_columns", "unstructured", "n:m")
    within = "matrix"

    def score(self, view: View) -> Tensor:
        """Return the absolute weights (R, C), float32."""
        return view.W.abs().float()

    def costs(self, view: View) -> tuple[Tensor, Tensor]:
        """Return the Euclidean norms of the rows (r,) and of the columns (c,), float64."""
        W = view.W.to(torch.float64)
        return W.norm(dim=1), W.norm(dim=0)

    def update(self, view: View, keep_rows: Tensor, keep_columns: Tensor) -> None:
        """Leave the kept weights alone."""
