"""An allocation of anybody's own is held to what it promises: a ratio per block, whose mean is the ratio asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.methods.magnitude import Magnitude
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.weights import Unstructured


@dataclass(frozen=True)
class More:
    """Gives every block the ratio and something more."""

    more: float
    blocks: int | None = None
    name: str = "more"

    def share(self, scores: Sequence[Tensor]) -> float:
        return 0.0

    def ratios(self, shares: Sequence[float], ratio: float) -> list[float]:
        return [ratio + self.more] * (self.blocks or len(shares))


@pytest.mark.parametrize("allocation", [More(0.2), More(-0.1), More(0.0, blocks=1), More(0.6)])
def test_ratios_of_another_mean_or_number_are_refused(allocation: More) -> None:
    decoder = random_decoder("llama")
    tokens = torch.randint(3, 60, (2, 8))
    method = Magnitude("magnitude", 1, None)
    with pytest.raises(ModelError, match=r"allocation more: ratios\(\) gave"):
        prune(
            decoder,
            method,
            tokens,
            [0.4],
            pattern=Unstructured(),
            allocation=allocation,
            seed=0,
            batch_size=2,
        )
