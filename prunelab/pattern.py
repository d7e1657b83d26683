"""Sparsity patterns: what may be removed together, and the only text of the rules that a run has to keep.

Both halves use these classes: planning asks before anything is queued, with what it read from a method's source;
numerics ask again with the objects at hand. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from prunelab.errors import ConfigError, nearest
from prunelab.statistic import CLASSES, OUTPUT_GRADIENT, class_of

Within = Literal["row", "matrix"]
Propagation = Literal["pruned", "dense"]
Rounding = Literal["exact", "published"]
SCOPES = ("linear",)  # what a method decides about at a time, and a pass exists for
UNIFORM, GLOBAL = "uniform", "global"
BEFORE, BETWEEN, BY_PATTERN = (
    "before",
    "between",
    "by_pattern",
)  # when masks are chosen, where a repair follows
ROUNDED = 1e-4  # 0.6667 means two thirds


@dataclass(frozen=True)
class MethodFacts:
    """What is known of a method without running it. ``functions``: names its class defines; ``reads``: what the
    statistics in ``needs`` look at, as far as they are known."""

    name: str
    scope: str
    supports: tuple[str, ...]
    needs: tuple[str, ...]
    step: float | None
    functions: frozenset[str]
    reads: frozenset[str] = frozenset()

    @property
    def scores(self) -> bool:
        """Whether it gives scores that can be compared anywhere, rather than choosing in its own way."""
        return "score" in self.functions


@dataclass(frozen=True)
class Run:
    """The choices beside the pattern. ``allocation``: its name; ``widths``: (whose, number of inputs) of linear layers."""

    method: MethodFacts
    ratio: float | None
    allocation: str
    propagation: str
    widths: Iterable[tuple[str, int]] = field(default=())


class Pattern(Protocol):
    """What may be removed together; frozen data. Make one with :func:`build_pattern`."""

    name: ClassVar[str]
    functions: ClassVar[tuple[tuple[str, ...], ...]]  # a method needs all of one of these
    default_allocation: ClassVar[str]
    several_shots: ClassVar[bool]
    propagates: ClassVar[bool]  # whether there is a choice of the stream that statistics are taken on

    @property
    def group(self) -> tuple[int, int] | None:
        """(n, m) where n of every m consecutive inputs are kept."""
        ...

    @property
    def within(self) -> Within | None:
        """Where scores compete; None as the method's paper does it."""
        ...

    @property
    def rounding(self) -> Rounding:
        """What a ratio means in whole weights."""
        ...

    @property
    def fixed_ratio(self) -> float | None:
        """The removed fraction that the pattern fixes; None where it is free."""
        ...

    @property
    def tag(self) -> str:
        """A short word for trial names, "" for the default pattern."""
        ...

    @property
    def label(self) -> str:
        """What people call it."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what of the pattern decides a result."""
        ...

    def check(self, run: Run) -> Iterator[ConfigError]:
        """Yield every mistake of a run with this pattern."""
        ...


@dataclass(frozen=True)
class RowsColumns:
    """Whole rows (outputs) and columns (inputs) of linear layers, biases as a column (arXiv:2312.17244)."""

    name: ClassVar[str] = "rows_columns"
    functions: ClassVar[tuple[tuple[str, ...], ...]] = (("costs", "update"),)
    default_allocation: ClassVar[str] = GLOBAL
    several_shots: ClassVar[bool] = True
    propagates: ClassVar[bool] = False  # a shot looks at the model as the shots before have left it

    group = None
    within = None
    fixed_ratio = None
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
        yield from _check_method(self, run)
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
    several_shots: ClassVar[bool] = False
    propagates: ClassVar[bool] = True

    group = None
    fixed_ratio = None
    tag = "u"
    label = "unstructured"

    def identity(self) -> dict[str, Any]:
        """Return what of the pattern decides a result."""
        return {"pattern": self.name, "n": None, "m": None, "within": self.within, "rounding": self.rounding}

    def check(self, run: Run) -> Iterator[ConfigError]:
        """Yield every mistake of a run with this pattern."""
        yield from _check_method(self, run)
        if self.name not in run.method.supports:
            return  # the rest would be about a pattern that cannot be
        yield from _check_stream(run)
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
    """Single weights of which n of every m consecutive inputs of a row are **kept**."""

    n: int
    m: int

    name: ClassVar[str] = "n:m"
    functions: ClassVar[tuple[tuple[str, ...], ...]] = (("score",), ("prune",))
    default_allocation: ClassVar[str] = UNIFORM
    several_shots: ClassVar[bool] = False
    propagates: ClassVar[bool] = True

    within = None

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
        yield from _check_method(self, run)
        if self.name not in run.method.supports:
            return  # the rest would be about a pattern that cannot be
        yield from _check_stream(run)
        if run.allocation != UNIFORM:
            hint = "n:m fixes every layer's ratio."
            yield ConfigError("allocation", run.allocation, f"{UNIFORM} with n:m", hint)
        unfit = [f"{name} has {columns} inputs" for name, columns in run.widths if columns % self.m]
        if unfit:
            more = f", and {len(unfit) - 3} more" if len(unfit) > 3 else ""
            hint = f"{'; '.join(unfit[:3])}{more}. Use another m, or sparsity=unstructured."
            yield ConfigError("sparsity.m", self.m, "a divisor of every layer's number of inputs", hint)


PATTERNS: Mapping[str, type[Pattern]] = {kind.name: kind for kind in (RowsColumns, Unstructured, NM)}


def build_pattern(
    name: str, *, n: int | None = None, m: int | None = None, within: str | None = None,
    rounding: str | None = None,
) -> Pattern:  # fmt: skip
    """Return the checked pattern. ``name``: one of ``PATTERNS``, or e.g. ``2:4`` for ``n:m``.

    Raises ConfigError for an unknown name, for n, m, within or rounding where they have no meaning, unless
    1 <= n < m.
    """
    first, colon, second = name.partition(":")
    if colon and first.isdigit() and second.isdigit():
        name, n, m = NM.name, int(first), int(second)
    if name not in PATTERNS:
        raise ConfigError("sparsity.pattern", name, " | ".join(PATTERNS), nearest(name, PATTERNS))
    if within not in (None, "row", "matrix"):
        raise ConfigError("sparsity.within", within, "row | matrix | null (as the method's paper does it)")
    if rounding not in (None, "exact", "published"):
        raise ConfigError("sparsity.rounding", rounding, "exact | published")
    if rounding == "published" and name != Unstructured.name:
        hint = "Its counts are whole numbers."
        raise ConfigError("sparsity.rounding", rounding, f"exact with sparsity.pattern={name}", hint)
    if name == NM.name:
        if n is None or m is None or not 1 <= n < m:
            hint = "n of every m consecutive inputs are kept."
            raise ConfigError("sparsity.n, sparsity.m", (n, m), "1 <= n < m", hint)
        if within is not None:
            hint = "Groups of m compete."
            raise ConfigError("sparsity.within", within, "null with sparsity.pattern=n:m", hint)
        return NM(n, m)
    if (n, m) != (None, None):
        raise ConfigError("sparsity.n, sparsity.m", (n, m), f"null with sparsity.pattern={name}")
    if name == Unstructured.name:
        return Unstructured(within, rounding or "exact")  # type: ignore[arg-type]
    if within is not None:
        raise ConfigError("sparsity.within", within, f"null with sparsity.pattern={name}")
    return RowsColumns()


def pattern_of(values: Mapping[str, Any]) -> Pattern:
    """Return the pattern of a config's ``sparsity``, or of the identity that :meth:`Pattern.identity` gave."""
    return build_pattern(
        values["pattern"], n=values.get("n"), m=values.get("m"), within=values.get("within"),
        rounding=values.get("rounding"),
    )  # fmt: skip


def _check_method(pattern: Pattern, run: Run) -> Iterator[ConfigError]:
    method = run.method
    if method.scope not in SCOPES:
        yield ConfigError("method.scope", method.scope, " | ".join(SCOPES), f"In the class of {method.name}.")
    if pattern.name not in method.supports:
        can = f"what method={method.name} can do: {', '.join(method.supports)}"
        yield ConfigError("sparsity.pattern", pattern.name, can)
        return
    if not any(method.functions.issuperset(names) for names in pattern.functions):
        wanted = " or ".join(" and ".join(names) for names in pattern.functions)
        allowed = f"a class with {wanted} for sparsity.pattern={pattern.name}"
        yield ConfigError("method", method.name, allowed, "See prunelab/methods/base.py.")
    for need in method.needs:
        if not class_of(need):
            allowed = f"{', '.join(CLASSES)}, or the dotted name of a statistic's class"
            yield ConfigError("method.needs", need, allowed, nearest(need, CLASSES))
    if method.step is not None and not pattern.several_shots:
        allowed = f"null with sparsity.pattern={pattern.name}"
        yield ConfigError("method.step", method.step, allowed, "Single weights are pruned in one shot.")
    fixed, ratio = pattern.fixed_ratio, run.ratio
    if ratio is None or not 0 <= ratio < 1:
        yield ConfigError("sparsity.ratio", ratio, "a number, 0 <= x < 1", "It is the removed fraction.")
    elif fixed is not None and abs(ratio - fixed) > ROUNDED:
        yield ConfigError("sparsity.ratio", ratio, f"{fixed:g}, what {pattern.label} removes")


def _check_stream(run: Run) -> Iterator[ConfigError]:
    """Rules about the stream that statistics are taken on, where there is a choice."""
    if run.propagation not in ("pruned", "dense"):
        yield ConfigError("sparsity.propagation", run.propagation, "pruned | dense")
    elif run.propagation == "pruned" and run.allocation == GLOBAL and run.method.needs:
        hint = "All layers are compared before any is pruned."
        yield ConfigError("sparsity.propagation", "pruned", f"dense with allocation={GLOBAL}", hint)
    elif run.propagation == "pruned" and OUTPUT_GRADIENT in run.method.reads:
        hint = "Gradients come from one walk back through the whole model, before any block is pruned."
        yield ConfigError("sparsity.propagation", "pruned", f"dense with method={run.method.name}", hint)


def between_error(pattern: Pattern, allocation: str, propagation: str) -> ConfigError | None:
    """Return why masks cannot be chosen block by block between repairs, None if they can.

    They can where a block's choice needs nothing of later blocks, and its statistics are those of the pruned stream.
    """
    if not pattern.propagates:
        what, hint = f"sparsity.pattern={pattern.name}", "Every shot compares the layers of all blocks."
    elif allocation == GLOBAL:
        what, hint = (
            f"allocation={GLOBAL}",
            "It compares all layers before any is pruned; uniform and owl do not.",
        )
    elif propagation != "pruned":
        what, hint = (
            f"sparsity.propagation={propagation}",
            "Statistics of the dense model do not see repairs.",
        )
    else:
        return None
    return ConfigError("reconstruction.masks", BETWEEN, f"{BEFORE}, or {BY_PATTERN}, with {what}", hint)
