"""Wanda-sp: Wanda's weight score carried to the columns of output maps. Baseline of arXiv:2312.11983.

    s_c = mean_j |W_out[j, c]| ||z_c||,   z what enters the output map; a unit's importance is the sum over its columns

The norm is the root mean square per token, a constant away from the code's. Statistics of the pruned stream, equal shares
in every block, no compensation, as that code does. It keeps what lies *above* a threshold, which removes more where
scores are equal, and reads 128 samples into buffers of which the rest are zero; neither is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from prunelab.stats.unit_view import UnitView


@dataclass(frozen=True)
class WandaSP:
    """Importance from the output map's weights and input norms."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]

    scope = "unit"
    needs = ("input_norm",)
    supports = ("units",)
    propagation = "pruned"

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit, float64."""
        norm = view.value(view.output, "input_norm").double()
        return view.output.per_unit(view.output.W.double().abs().mean(0) * norm)
