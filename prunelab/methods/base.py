"""What a pruning method is. Methods implement these by shape; none imports this file or another method.

A method is a frozen dataclass without defaults: every value comes from ``conf/method/<name>.yaml``. Its first
fields are ``name``, ``revision`` (raised when the same inputs give other numbers) and ``step`` (ratio per
shot; None = everything in one shot). ``needs`` and ``supports`` are literal tuples, so that a plan can be
checked without torch.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from prunelab.stats.site import SiteView


class StructuredMethod(Protocol):
    """Removes whole rows and columns of linear layers by cost."""

    @property
    def name(self) -> str:
        """Published name."""
        ...

    @property
    def revision(self) -> int:
        """Raised when the same inputs give other numbers."""
        ...

    @property
    def step(self) -> float | None:
        """Ratio removed per shot, 0 < step <= 1; None = one shot."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Factors to collect before each shot, of 'input_gram' and 'output_gram'."""
        ...

    @property
    def supports(self) -> tuple[str, ...]:
        """Sparsity patterns the method can do, of 'rows_columns'."""
        ...

    def costs(self, site: SiteView) -> tuple[Tensor, Tensor]:
        """Return the costs of removing each row (r,) and each column (c,) of the live weight; finite, >=
        0."""
        ...

    def update(self, site: SiteView, keep_rows: Tensor, keep_columns: Tensor) -> Tensor | None:
        """Return the new live weight (r, c) once keep_rows (r,) and keep_columns (c,) are decided.

        None = the kept weights stay as they are, bit for bit. The pass zeroes what is removed.
        """
        ...
