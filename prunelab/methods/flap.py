"""FLAP: units whose output fluctuates least around its mean, which a bias can replace. An et al., AAAI 2024, arXiv:2312.11983.

    WIFV_c = Var(z_c) ||W_out[:, c]||^2      z what enters the output map; eq. (4), the default
    IFV_c  = Var(z_c)
    WIFN_c = mean_j |W_out[j, c]| ||z_c||

Channels are standardised inside each block and kind (eq. 5), so that one ranking over all blocks, heads and neurons can
follow (``allocation=global``, the paper's AL-AM; ``uniform`` is its UL-UM, ``by_kind`` its AL-MM, and
``sparsity.head_ratio`` fixes the heads' share in the last two); a head's importance is the mean over its channels. The
removed units' mean goes into the output map's bias. The authors' code squares the attention's metric first, which the
formula does not: ``attention_power`` 2 is that code, 1 the formula. Its variance loses the first sample (see
prunelab.stats.input_moments), its cost of a head is 512/3 neurons whatever the shapes; neither is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunelab.pattern.base import HEADS
from prunelab.stats.unit_view import UnitView


@dataclass(frozen=True)
class FLAP:
    """Importance from the output map's weights and the fluctuation of its inputs."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    metric: Annotated[str, "WIFV | IFV | WIFN"]
    attention_power: Annotated[float, "x > 0"]

    scope = "unit"
    needs = ("input_moments",)
    supports = ("units",)
    allocation = "global"
    compensation = "bias"

    def importance(self, view: UnitView) -> Tensor:
        """Return the standardised importance (count,) of every unit, float64."""
        score = self._channels(view)
        if view.kind == HEADS:
            score = score**self.attention_power
        index = view.output.index.to(score.device)
        living = index[view.alive.to(index.device)].reshape(-1)
        spread = score[living].std() if living.numel() > 1 else score.new_zeros(())
        mean = score[living].mean() if living.numel() else score.new_zeros(())
        scaled = (score - mean) / spread if float(spread) > 0 else torch.zeros_like(score)
        return scaled[index].mean(1)

    def _channels(self, view: UnitView) -> Tensor:
        """Scores (C,) of the output map's input channels, float64."""
        moments, W = view.value(view.output, "input_moments"), view.output.W.double()
        variance = moments.variance.double()
        if self.metric == "IFV":
            return variance
        if self.metric == "WIFV":
            return variance * W.square().sum(0)
        return W.abs().mean(0) * (variance + moments.mean.double().square()).sqrt()
