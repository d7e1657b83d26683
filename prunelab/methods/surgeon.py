"""The LLM Surgeon: OBS with a Kronecker-factored Fisher. van der Ouderaa et al., ICLR 2024, arXiv:2312.17244.

Costs: row ``1/2 W_r A W_r^T / [G^-1]_rr``, column ``1/2 W_c^T G W_c / [A^-1]_cc``, single weight ``1/2 W_rc^2 / ([G^-1]_rr
[A^-1]_cc)``, a group of n:m the sum of its lowest. As in the published code, inverses are of the damped factors and
numerators of the plain ones. A bias is a column: it may go with rows and columns, takes part in every update, and stays
where single weights go (the published code counts it among them without n:m).

Updates by ``correlation``: ``full`` is the joint optimum of all that goes; ``independent`` is the paper's ablation, the sum
of the updates of single structures; ``none`` leaves the rest as it is. ``summed`` is what the published structured script
does: both updates of the original weight, for rows and for columns, are added up. ``grouped`` is what the published code
does with single weights: groups of whole rows of at most ``max_correlate`` removed weights, one after the other.

The paper's first-order correction is apart: ``between_shots=lora_surgeon``, and after the last shot
``reconstruction=lora_surgeon`` (prunelab/reconstruction/lora.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.linalg import obs
from prunelab.stats.view import View


@dataclass(frozen=True)
class Surgeon:
    """Correlated OBS updates after each of several shots. damping_output, damping_input: lambda_G, lambda_A.
    ``tolerance``: how far the quadratic loss of single weights' joint update may lie above its optimum, relative to it;
    ``iterations``: of conjugate gradients at most."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    damping_output: Annotated[float, "x >= 0"]
    damping_input: Annotated[float, "x >= 0"]
    correlation: Annotated[str, "full | independent | none | summed | grouped"]
    max_correlate: Annotated[int, "x >= 1"]
    tolerance: Annotated[float, "0 < x <= 1"]
    iterations: Annotated[int, "x >= 1"]

    scope = "linear"
    needs = ("input_gram", "output_gram")
    supports = ("rows_columns", "unstructured", "n:m")
    allocation = "global"
    within = "matrix"

    def costs(self, view: View) -> tuple[Tensor, Tensor]:
        """Return row costs (r,) and column costs (c,), nats per token, float64."""
        rows = obs.row_quadratic(view.W, view.A) / view.output_gram.inverse_diagonal(self.damping_output)
        columns = obs.column_quadratic(view.W, view.G) / view.input_gram.inverse_diagonal(self.damping_input)
        return rows / 2, columns / 2

    def score(self, view: View) -> Tensor:
        """Return the cost of every weight (r, c), nats per token, float64."""
        rows = view.output_gram.inverse_diagonal(self.damping_output)
        columns = view.input_gram.inverse_diagonal(self.damping_input)
        return view.W.double().square() / rows[:, None] / columns / 2

    def update(self, view: View, keep_rows: Tensor, keep_columns: Tensor) -> Tensor | None:
        """Return the repaired weight (r, c), float64, removed rows and columns exactly 0."""
        if self.correlation == "none":
            return None
        if self.correlation == "grouped":
            allowed = "full | independent | none | summed with sparsity.pattern=rows_columns"
            raise ConfigError("method.correlation", self.correlation, allowed)
        W, (G, A) = view.W.double(), self._factors(view)
        if self.correlation == "summed":
            return obs.remove_summed(W, G, A, keep_rows, keep_columns, view.name)
        if self.correlation == "independent":
            return obs.remove_lines_singly(W, G, A, keep_rows, keep_columns, view.name)
        if not keep_rows.all():
            W = obs.remove_rows(W, G, keep_rows, f"{view.name} (output)")
        if not keep_columns.all():
            W = obs.remove_columns(W, A, keep_columns, f"{view.name} (input)")
        return W

    def update_kept(self, view: View, keep: Tensor) -> Tensor | None:
        """Return the repaired weight (r, c), float64, removed weights exactly 0."""
        if self.correlation == "none":
            return None
        if self.correlation == "summed":
            allowed = "full | independent | none | grouped without sparsity.pattern=rows_columns"
            raise ConfigError("method.correlation", self.correlation, allowed)
        W, (G, A) = view.W.double(), self._factors(view)
        if self.correlation == "independent":
            return obs.remove_elements_singly(W, G, A, keep, view.name)
        if self.correlation == "grouped":
            return obs.remove_elements_in_groups(W, G, A, keep, self.max_correlate, view.name)
        found = obs.remove_elements(
            W, G, A, keep, tolerance=self.tolerance, iterations=self.iterations, what=view.name
        )
        return found.X

    def _factors(self, view: View) -> tuple[Tensor, Tensor]:
        return view.output_gram.damped(self.damping_output), view.input_gram.damped(self.damping_input)
