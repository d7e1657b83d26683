"""What a pruning method is. Methods implement these by shape; none imports this file or another method.

A method is a frozen dataclass without defaults: every value comes from ``conf/method/<name>.yaml``. Its first
fields are ``name``, ``revision`` (raised when the same inputs give other numbers) and ``step`` (ratio per
shot; None = everything in one shot). Three literals let a plan be checked without torch: ``scope`` (what it decides
about at a time: ``linear`` or ``unit``), ``needs`` (names of statistics, see prunelab.statistic) and
``supports`` (names of patterns, see prunelab.pattern). A fourth, ``domains``, is for methods that compare kinds of
text: how many token sets at least, the mask's own among them (see prunelab.config.domain). A method may be several of
these at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from prunelab.pattern.base import Within
from prunelab.sparsity.element import Budget
from prunelab.stats.base import Values
from prunelab.stats.judge import Judge, Priced, Weighed
from prunelab.stats.unit_view import Member, UnitView
from prunelab.stats.view import View


class Method(Protocol):
    """What all methods say of themselves."""

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
    def scope(self) -> str:
        """What it decides about at a time: ``linear`` or ``unit``."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics to collect before each decision: ``input_norm``, ``input_gram``, ``output_gram``, ``taylor``, or
        the dotted name of a class; () looks at no data."""
        ...

    @property
    def supports(self) -> tuple[str, ...]:
        """Sparsity patterns it can do: ``rows_columns``, ``unstructured``, ``n:m``, ``units``."""
        ...


class RowsColumnsMethod(Method, Protocol):
    """Removes whole rows and columns of linear layers by cost."""

    def costs(self, view: View) -> tuple[Tensor, Tensor]:
        """Return the costs of removing each row (r,) and each column (c,) of the live weight; finite, >= 0."""
        ...

    def update(self, view: View, keep_rows: Tensor, keep_columns: Tensor) -> Tensor | None:
        """Return the new live weight (r, c) once keep_rows (r,) and keep_columns (c,) are decided.

        None = the kept weights stay as they are, bit for bit. The pass zeroes what is removed.
        """
        ...


class ScoringMethod(Method, Protocol):
    """Removes single weights by score and leaves the others alone; the pass chooses the lowest.

    Since a score does not depend on the ratio, one pass on the dense stream serves any number of ratios, and
    layers can be compared with each other.
    """

    @property
    def within(self) -> Within:
        """Where scores compete unless the config says otherwise: 'row' or 'matrix'."""
        ...

    def score(self, view: View) -> Tensor:
        """Return a score >= 0 for every weight of the view, (R, C) float32, finite; the lowest go."""
        ...


class CorrectingMethod(ScoringMethod, Protocol):
    """A scoring method that makes the weights that stay up for those that go, once these are chosen over all layers.

    It sees the live part of each layer's ``[W  b]``: the bias, a last column that is never removed, takes part.
    """

    def update_kept(self, view: View, keep: Tensor) -> Tensor | None:
        """Return the new live weight (r, c) once ``keep`` (r, c) bool is decided; None: what stays is as it was.

        The pass zeroes what is removed.
        """
        ...


class UpdatingMethod(Method, Protocol):
    """Removes single weights and repairs the others in the same sweep."""

    def prune(self, view: View, budgets: Sequence[Budget]) -> tuple[Tensor, Tensor]:
        """Return keep (R, C) bool and new weights (R, C) for ``budgets``, one per layer of the view: layers
        with one input may come stacked, ``view.parts()`` are the rows of each.

        A method may also have ``prune_many(view, choices)``: a list of such results for a list of such
        budgets, to the bit those of one after the other, where that is faster.
        """
        ...


class UnitMethod(Method, Protocol):
    """Removes whole neurons and heads, or whole blocks, by importance; the pass chooses, removes and compensates.

    More literals may stand in the class, for what a trial leaves to the method: ``allocation`` (``uniform`` unless it
    says otherwise), ``propagation`` (``dense``), ``compensation`` (``none``), ``kinds`` (neurons and heads). ``units``
    (neurons and heads): the kinds that it can decide about; ``blocks`` is one more.
    """

    def importance(self, view: UnitView) -> Tensor:
        """Return the importance (count,) of every unit, finite, float64; the lowest go. Compared inside a kind and
        block, or over all of them: then its scale must be the same everywhere."""
        ...


class ExplainingMethod(Method, Protocol):
    """A unit method that says why units went, in tables of the record."""

    def study(self, view: UnitView) -> tuple[Tensor, Any]:
        """Return the importance (count,) as :meth:`UnitMethod.importance`, and evidence that the other functions get back."""
        ...

    def explain(self, evidence: Any, gone: Tensor) -> Mapping[str, list[dict[str, Any]]]:
        """Return rows of plain values by the name of a table, once the units ``gone`` (count,) bool go.

        The pass puts shot, block and kind before each row, and keeps the first 64 of a table of one kind and block:
        those that say most come first. The record has them as ``units/<name>``; None where a value does not apply. With the
        literal ``tells_tokens = True`` in the class, a column ``<name>_samples``, numbers of rows of the statistic
        ``input_samples`` with spaces between, gets a column ``<name>_tokens`` with those tokens' ids and, where the model's
        tokenizer made them, ``<name>_text`` beside it.
        """
        ...


class WeighingMethod(Method, Protocol):
    """A unit method that asks the whole model, once all units have a price and before any goes.

    A literal ``judged`` in the class says when: rows of a field, its value, and the allocations that this value goes with,
    such as ``(("shares", "learned", ("global",)),)``. Then statistics are of the model as each shot finds it. Where there is
    a field ``held_out``, that share of every token set's windows, the last ones, is in none of them: for judging.
    """

    def study(self, view: UnitView) -> tuple[Tensor, Any]:
        """Return the importance, and evidence that :meth:`weigh` gets back, on the CPU: that of all blocks is held at once."""
        ...

    def weigh(self, priced: Sequence[Priced], judge: Judge) -> Weighed:
        """Return the final importance, compared as any other; with evidence for ``explain`` and ``merge``, and tables of the
        whole model, which the record has as ``units/<name>``. Must depend on nothing but its arguments: after a kill it is
        asked again."""
        ...


class MergingMethod(Method, Protocol):
    """A unit method that knows which unit stands in for a removed one."""

    def study(self, view: UnitView) -> tuple[Tensor, Any]:
        """Return the importance, and evidence that :meth:`merge` gets back."""
        ...

    def merge(
        self, evidence: Any, output: Member, values: Values, keep: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output map's new weight (R, C) and bias once the units ``keep`` (count,) bool are decided.

        ``values``: the statistics of that layer. The pass zeroes what is removed.
        """
        ...
