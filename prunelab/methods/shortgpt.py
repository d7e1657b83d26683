"""ShortGPT: whole decoder blocks that hardly change what passes through them. Men et al. 2024, arXiv:2403.03853.

    BI_l = mean_t (1 - cos(X_l[t], X_{l+1}[t]))        X_l what enters block l; eq. (1)

The blocks of least influence go, all at once and with nothing in their place; a ratio that counts units
(``sparsity.counts=units``) is the share of the blocks, 9 of 32 in the paper's Llama-2-7B. ``distance`` ``angular`` is the
variant of the authors' code, arccos(cos)/pi. With ``step`` the influences are measured anew after each shot, which is
ours. The paper's measure is in prunelab.stats.block_influence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.stats.unit_view import UnitView


@dataclass(frozen=True)
class ShortGPT:
    """Importance of a block from its input and output alone."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    distance: Annotated[str, "cosine | angular"]

    scope = "unit"
    needs = ("block_influence",)
    supports = ("units",)
    units = ("blocks",)
    kinds = ("blocks",)
    allocation = "global"

    def importance(self, view: UnitView) -> Tensor:
        """Return the influence (1,) of the view's block, float64."""
        influence = view.value(view.output, "block_influence")
        value = influence.angular if self.distance == "angular" else influence.cosine
        return torch.tensor([value], dtype=torch.float64)
