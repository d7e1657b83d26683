"""What a pruning method is. Methods implement these by shape; none imports this file or another method.

A method is a frozen dataclass without defaults: every value comes from ``conf/method/<name>.yaml``. Its first
fields are ``name``, ``revision`` (raised when the same inputs give other numbers) and ``step`` (ratio per
shot; None = everything in one shot). ``needs`` and ``supports`` are literal tuples, so that a plan can be
checked without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from prunelab.sparsity.pattern import Budget, Within
from prunelab.stats.linear import LinearView
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
        """Sparsity patterns the method can do; 'rows_columns' is among them."""
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


class ScoringMethod(Protocol):
    """Removes single weights by score and leaves the others alone; the pass chooses the lowest.

    Since a score does not depend on the ratio, one pass on the dense stream serves any number of ratios, and
    layers can be compared with each other. A method may be a StructuredMethod as well.
    """

    @property
    def name(self) -> str:
        """Published name."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics of the inputs, of 'input_norm' and 'input_gram'."""
        ...

    @property
    def supports(self) -> tuple[str, ...]:
        """Sparsity patterns, of 'unstructured', 'n:m' and 'rows_columns'."""
        ...

    @property
    def within(self) -> Within:
        """Where scores compete unless the config says otherwise: 'row' or 'matrix'."""
        ...

    def score(self, view: LinearView) -> Tensor:
        """Return a score >= 0 for every weight of the view, (R, C) float32, finite; the lowest go."""
        ...


class UpdatingMethod(Protocol):
    """Removes single weights and repairs the others in the same sweep."""

    @property
    def name(self) -> str:
        """Published name."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics of the inputs, of 'input_norm' and 'input_gram'."""
        ...

    @property
    def supports(self) -> tuple[str, ...]:
        """Sparsity patterns, of 'unstructured' and 'n:m'."""
        ...

    def prune(self, view: LinearView, budgets: Sequence[Budget]) -> tuple[Tensor, Tensor]:
        """Return keep (R, C) bool and new weights (R, C) for ``budgets``, one per layer of the view.

        A method may also have ``prune_many(view, choices)``: a list of such results for a list of such
        budgets, to the bit those of one after the other, where that is faster.
        """
        ...


LinearMethod = ScoringMethod | UpdatingMethod
