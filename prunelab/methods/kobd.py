"""K-OBD: Optimal Brain Damage with a Kronecker-factored Fisher, no update. Baseline of arXiv:2312.17244.

Costs: row ``1/2 G_rr W_r A W_r^T``, column ``1/2 A_cc W_c^T G W_c``, single weight ``1/2 W_rc^2 G_rr A_cc``.
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
    supports = ("rows_columns", "unstructured", "n:m")
    allocation = "global"
    within = "matrix"

    def score(self, view: View) -> Tensor:
        """Return the cost of every weight (R, C), nats per token."""
        return view.W.double().square() * view.G.diagonal()[:, None] * view.A.diagonal() / 2

    def costs(self, view: View) -> tuple[Tensor, Tensor]:
        """Return row costs (r,) and column costs (c,), nats per token, float64."""
        rows = obs.row_quadratic(view.W, view.A) * view.G.diagonal()
        columns = obs.column_quadratic(view.W, view.G) * view.A.diagonal()
        return rows / 2, columns / 2

    def update(self, view: View, keep_rows: Tensor, keep_columns: Tensor) -> None:
        """Leave the kept weights alone."""
