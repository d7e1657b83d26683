"""What an allocation is: a ratio per block from the dense model's weights and input norms.

``uniform`` (every layer the same ratio) and ``global`` (one threshold over all layers) need no numbers and are
names; anything else is a frozen dataclass without defaults in a file of this folder, built from
``conf/allocation/<name>.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Allocation(Protocol):
    """Turns one number per block into one ratio per block."""

    @property
    def name(self) -> str:
        """Published name."""
        ...

    def share(self, scores: Sequence[Tensor]) -> float:
        """Return a block's number from the scores ``|W_rc| norm_c`` (R, C) of its layers."""
        ...

    def ratios(self, shares: Sequence[float], ratio: float) -> list[float]:
        """Return one removed fraction per block; their mean is ``ratio``."""
        ...
