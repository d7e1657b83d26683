"""Wanda: weight times input norm, compared inside each row. Sun et al., ICLR 2024, arXiv:2306.11695, eq. (1).

Score ``|W_rc| ||x_c||_2``; no update. The norm is the root mean square per token (see
prunelab.stats.input_norm), a constant away from the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from prunelab.stats.view import View


@dataclass(frozen=True)
class Wanda:
    """Scores from weights and input norms; kept weights stay as they are."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]

    scope = "linear"
    needs = ("input_norm",)
    supports = ("unstructured", "n:m")
    within = "row"

    def score(self, view: View) -> Tensor:
        """Return the scores (R, C), float32."""
        return view.W.abs().float() * view.input_norm
