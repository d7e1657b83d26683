"""LLM-Pruner: units whose removal changes the loss least, by Taylor's expansion. Ma et al., NeurIPS 2023, arXiv:2305.11627.

A line of a member (a row of an in-map, a column of the output map) has, with g and F of prunelab.stats.taylor,

    vector    |sum_k w_k g_k|                     the code's ``vectorize``
    element1  sum_k |w_k g_k|                     ``param_first``, the default of its parser
    second    sum_k w_k^2 F_k                     ``param_second``
    mixed     sum_k |w_k g_k - w_k^2 F_k / 2|     ``param_mix``, the paper's element^2

Members are combined line by line, a head's lines added (prunelab.importance.member). In the model the paper prunes no
row has a bias; here a row's bias counts as one more weight of it, unless ``bias`` is false, since it goes with the row.
Where query heads share a key head the code adds up those of ``q mod n_kv``; here those that the head serves. Equal
shares in each block and several rounds (the code's ``iterative_steps``) are the pass' business: ``step``, and
``sparsity.counts=units sparsity.rounding=published`` with the first and last blocks protected are what the code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from prunelab.importance.member import combine
from prunelab.stats.unit_view import Member, UnitView


@dataclass(frozen=True)
class LLMPruner:
    """Importance from weights and the gradients of a few calibration sequences."""

    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    taylor: Annotated[str, "vector | element1 | second | mixed"]
    reduction: Annotated[str, "sum | mean | max | prod | first | last"]
    bias: bool

    scope = "unit"
    needs = ("taylor",)
    supports = ("units",)

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit, nats, float64."""
        return combine([self._lines(view, member) for member in view.members], self.reduction)

    def _lines(self, view: UnitView, member: Member) -> Tensor:
        """Scores (count, lines) of a member's lines."""
        kind = "signed" if self.taylor == "vector" else self.taylor
        sums = view.value(member, "taylor").of(kind, member.axis, bias=self.bias).double()
        return sums.abs()[member.index.to(sums.device)]
