"""The LLM Surgeon: OBS with a Kronecker-factored Fisher. van der Ouderaa et al., ICLR 2024, arXiv:2312.17244.

Costs: row ``1/2 W_r A W_r^T / [G^-1]_rr``, column ``1/2 W_c^T G W_c / [A^-1]_cc``. As in the
published code, inverses are of the damped factors and numerators of the plain ones. Updates:
all removed rows jointly, then all removed columns of the updated weight, which is the joint optimum; the
published structured script adds both updates of the original weight instead. ``correlation="independent"`` is
the paper's ablation: the sum of single-structure updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.linalg import obs
from prunelab.stats.view import View


@dataclass(frozen=True)
class Surgeon:
    """Correlated OBS updates after each of several shots. damping_output, damping_input: lambda_G,
    lambda_A."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    damping_output: Annotated[float, "x >= 0"]
    damping_input: Annotated[float, "x >= 0"]
    correlation: Annotated[str, "full | independent"]

    scope = "linear"
    needs = ("input_gram", "output_gram")
    supports = ("rows_columns",)

    def costs(self, view: View) -> tuple[Tensor, Tensor]:
        """Return row costs (r,) and column costs (c,), nats per token, float64."""
        rows = obs.row_quadratic(view.W, view.A) / view.output_gram.inverse_diagonal(self.damping_output)
        columns = obs.column_quadratic(view.W, view.G) / view.input_gram.inverse_diagonal(self.damping_input)
        return rows / 2, columns / 2

    def update(self, view: View, keep_rows: Tensor, keep_columns: Tensor) -> Tensor:
        """Return the repaired weight (r, c), float64, removed rows and columns exactly 0."""
        W = view.W.to(torch.float64)
        if self.correlation == "independent":
            return self._independent(view, W, keep_rows, keep_columns)
        if not keep_rows.all():
            W = obs.remove_rows(
                W, view.output_gram.damped(self.damping_output), keep_rows, f"{view.name} (output)"
            )
        if not keep_columns.all():
            W = obs.remove_columns(
                W, view.input_gram.damped(self.damping_input), keep_columns, f"{view.name} (input)"
            )
        return W

    def _independent(self, view: View, W: Tensor, keep_rows: Tensor, keep_columns: Tensor) -> Tensor:
        updated = W.clone()
        if not keep_rows.all():
            G = view.output_gram.damped(self.damping_output)
            updated += obs.remove_rows_singly(W, G, keep_rows, f"{view.name} (output)")
        if not keep_columns.all():
            A = view.input_gram.damped(self.damping_input)
            updated += obs.remove_columns_singly(W, A, keep_columns, f"{view.name} (input)")
        return updated * keep_rows[:, None] * keep_columns[None, :]
