"""L-OBD: layer-wise Optimal Brain Damage (G = I, diagonal of A), no update. Baseline of arXiv:2312.17244.

Costs: of a single weight ``1/2 W_rc^2 A_cc``, of a row or a column their sum. They leave out the loss's sensitivity to
each layer, so they do not compare between layers, which is why the method suffers under a global threshold. A
is averaged over all calibration sequences; the published code overwrites it and keeps the last sequence only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from prunelab.stats.view import View


@dataclass(frozen=True)
class LOBD:
    """Costs from input energies; kept weights stay as they are."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]

    scope = "linear"
    needs = ("input_gram",)
    supports = ("rows_columns", "unstructured", "n:m")
    allocation = "global"
    within = "matrix"

    def score(self, view: View) -> Tensor:
        """Return the cost of every weight (R, C), squared output units."""
        return view.W.double().square() * view.A.diagonal() / 2

    def costs(self, view: View) -> tuple[Tensor, Tensor]:
        """Return row costs (r,) and column costs (c,), squared output units, float64."""
        elements = self.score(view)
        return elements.sum(1), elements.sum(0)

    def update(self, view: View, keep_rows: Tensor, keep_columns: Tensor) -> None:
        """Leave the kept weights alone."""
