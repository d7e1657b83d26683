"""K-OBD: Optimal Brain Damage with a Kronecker-factored Fisher, no update. Baseline of arXiv:2312.17244.

Costs: row ``1/2 G_rr W_r A W_r^T``, column ``1/2 A_cc W_c^T G W_c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from prunelab.linalg import obs
from prunelab.stats.view import View


@dataclass(frozen=True)
class KOBD:
    """Costs from both factors; kept weights stay as they are."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]

    scope = "linear"
    needs = ("input_gram", "output_gram")
    supports = ("rows_columns",)

    def costs(self, view: View) -> tuple[Tensor, Tensor]:
        """Return row costs (r,) and column costs (c,), nats per token, float64."""
        rows = obs.row_quadratic(view.W, view.A) * view.G.diagonal()
        columns = obs.column_quadratic(view.W, view.G) * view.A.diagonal()
        return rows / 2, columns / 2

    def update(self, view: View, keep_rows: Tensor, keep_columns: Tensor) -> None:
        """Leave the kept weights alone."""
