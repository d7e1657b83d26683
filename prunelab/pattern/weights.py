"""Patterns of linear layers: whole rows and columns, or single weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from prunelab.errors import ConfigError
from prunelab.pattern.base import (
    BY_KIND,
    GLOBAL,
    UNIFORM,
    Rounding,
    Run,
    Within,
    check_method,
    check_stream,
)


@dataclass(frozen=True)
class RowsColumns:
    """Whole rows (outputs) and columns (inputs) of linear layers, biases as a column (arXiv:2312.17244)."""

    name: ClassVar[str] = "rows_columns"
    functions: ClassVar[tuple[tuple[str, ...], ...]] = (("costs", "update"),)
    default_allocation: ClassVar[str] = GLOBAL
    default_propagation: ClassVar[str] = "pruned"
    narrows: ClassVar[bool] = False
    propagates: ClassVar[bool] = False  # a shot looks at the model as the shots before have left it

    group = None
    within = None
    fixed_ratio = None
    needs = ()
    tag = ""
    label = "rows and columns"

    @property
    def rounding(self) -> Rounding:
        """Its counts are whole structures."""
        return "exact"

    def identity(self) -> dict[str, Any]:
        """Return what of the pattern decides a result."""
        return {"pattern": self.name}

    def check(self, run: Run) -> Iterator[ConfigError]:
        """Yield every mistake of a run with this pattern."""
        yield from check_method(self, run)
        if self.name not in run.method.supports:
            return  # the rest would be about a pattern that cannot be
        if run.allocation not in (GLOBAL, UNIFORM):
            allowed = f"{GLOBAL} or {UNIFORM} with sparsity.pattern={self.name}"
            yield ConfigError("allocation", run.allocation, allowed)
        if run.propagation != "pruned":
            allowed = f"pruned with sparsity.pattern={self.name}"
            hint = "Each shot looks at the model as it is."
            yield ConfigError("sparsity.propagation", run.propagation, allowed, hint)


@dataclass(frozen=True)
class Unstructured:
    """Any single weights. ``rounding``: what a ratio means in whole weights, see :mod:`prunelab.sparsity.element`."""

    within: Within | None = None
    rounding: Rounding = "exact"

    name: ClassVar[str] = "unstructured"
    functions: ClassVar[tuple[tuple[str, ...], ...]] = (("score",), ("prune",))
    default_allocation: ClassVar[str] = UNIFORM
    default_propagation: ClassVar[str] = "pruned"
    narrows: ClassVar[bool] = False
    propagates: ClassVar[bool] = True

    group = None
    fixed_ratio = None
    needs = ()
    tag = "u"
    label = "unstructured"

    def identity(self) -> dict[str, Any]:
        """Return what of the pattern decides a result."""
        return {"pattern": self.name, "n": None, "m": None, "within": self.within, "rounding": self.rounding}

    def check(self, run: Run) -> Iterator[ConfigError]:
        """Yield every mistake of a run with this pattern."""
        yield from check_method(self, run)
        if self.name not in run.method.supports:
            return  # the rest would be about a pattern that cannot be
        yield from check_stream(run)
        if run.allocation == BY_KIND:
            hint = "Neurons and heads are kinds of units."
            allowed = f"{UNIFORM} | {GLOBAL} | owl with sparsity.pattern={self.name}"
            yield ConfigError("allocation", run.allocation, allowed, hint)
        elif run.method.looks_again and run.allocation not in (UNIFORM, GLOBAL):
            hint = f"method={run.method.name} looks at all layers before any is pruned."
            yield ConfigError("allocation", run.allocation, f"{UNIFORM} | {GLOBAL}", hint)
        yield from _check_shots(run)
        if run.method.scores:
            return
        hint = f"method={run.method.name} chooses in its own way."
        if self.within is not None:
            yield ConfigError("sparsity.within", self.within, "null without scores to compare", hint)
        if run.allocation == GLOBAL:
            allowed = f"{UNIFORM} or owl without scores to compare"
            yield ConfigError("allocation", run.allocation, allowed, hint)


@dataclass(frozen=True)
class NM:
    """Single weights of which n of every m consecutive inputs of a row are **kept**.

    In several shots the ratio of a shot is a share of groups: at 0.2 of 0.5, two fifths of them are n:m, the cheapest of
    their layer or of all layers (arXiv:2312.17244).
    """

    n: int
    m: int

    name: ClassVar[str] = "n:m"
    functions: ClassVar[tuple[tuple[str, ...], ...]] = (("score",), ("prune",))
    default_allocation: ClassVar[str] = UNIFORM
    default_propagation: ClassVar[str] = "pruned"
    narrows: ClassVar[bool] = False
    propagates: ClassVar[bool] = True

    within = None
    needs = ()

    @property
    def group(self) -> tuple[int, int]:
        """(n, m)."""
        return self.n, self.m

    @property
    def fixed_ratio(self) -> float:
        """1 - n/m."""
        return 1 - self.n / self.m

    @property
    def tag(self) -> str:
        """E.g. ``2of4``."""
        return f"{self.n}of{self.m}"

    @property
    def label(self) -> str:
        """E.g. ``2:4``."""
        return f"{self.n}:{self.m}"

    @property
    def rounding(self) -> Rounding:
        """Its counts are whole numbers."""
        return "exact"

    def identity(self) -> dict[str, Any]:
        """Return what of the pattern decides a result."""
        return {"pattern": self.name, "n": self.n, "m": self.m, "within": None}

    def check(self, run: Run) -> Iterator[ConfigError]:
        """Yield every mistake of a run with this pattern."""
        yield from check_method(self, run)
        if self.name not in run.method.supports:
            return  # the rest would be about a pattern that cannot be
        yield from check_stream(run)
        yield from _check_shots(run)
        if run.allocation != UNIFORM and not (run.allocation == GLOBAL and run.method.scores):
            hint = "n:m fixes every layer's ratio."
            yield ConfigError("allocation", run.allocation, f"{UNIFORM} with n:m", hint)
        unfit = [f"{name} has {columns} inputs" for name, columns in run.widths if columns % self.m]
        if unfit:
            more = f", and {len(unfit) - 3} more" if len(unfit) > 3 else ""
            hint = f"{'; '.join(unfit[:3])}{more}. Use another m, or sparsity=unstructured."
            yield ConfigError("sparsity.m", self.m, "a divisor of every layer's number of inputs", hint)


def _check_shots(run: Run) -> Iterator[ConfigError]:
    if run.method.step is not None and not run.method.scores:
        hint = f"method={run.method.name} chooses in its own way, all at once."
        yield ConfigError("method.step", run.method.step, "null without scores to compare", hint)
