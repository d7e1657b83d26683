"""Sparsity patterns: what may be removed together, and the only text of the rules that a run has to keep.

Both halves use these classes: planning asks before anything is queued, with what it read from a method's source;
numerics ask again with the objects at hand. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

from prunelab.errors import ConfigError, nearest
from prunelab.statistic import BACKWARD, CLASSES, class_of

Within = Literal["row", "matrix"]
Propagation = Literal["pruned", "dense"]
Rounding = Literal["exact", "published"]
Counts = Literal["units", "decoder", "model"]
SCOPES = ("linear", "unit")  # what a method decides about at a time, and a pass exists for
UNIFORM, GLOBAL, BY_KIND = "uniform", "global", "by_kind"
BY_CLASS = ("allocation", "propagation", "compensation", "kinds")  # literals that a method's class may have
UNITS = "units"  # and one more: kinds of units that it can decide about, neurons and heads without it
BY_METHOD = "by_method"  # what the method's class says of itself, see :func:`settle`
NEURONS, HEADS, BLOCKS = "neurons", "heads", "blocks"
KINDS = (NEURONS, HEADS)  # parts of a block; what is removed unless a method or a trial says otherwise
COMPENSATION: Mapping[
    str, tuple[str, ...]
] = {  # how the output map makes up for removed inputs: what it looks at
    "none": (),
    "bias": ("input_moments",),
    "least_squares": ("input_moments", "input_gram"),
    "merge": (),  # the method says which unit stands in for which, from what it looked at itself
}
BEFORE, BETWEEN, BY_PATTERN = (
    "before",
    "between",
    "by_pattern",
)  # when masks are chosen, where a repair follows
ROUNDED = 1e-4  # 0.6667 means two thirds


@dataclass(frozen=True)
class MethodFacts:
    """What is known of a method without running it. ``functions``: names its class defines; ``reads``: what the
    statistics in ``needs`` look at, as far as they are known; ``units``: kinds of units that it can decide about."""

    name: str
    scope: str
    supports: tuple[str, ...]
    needs: tuple[str, ...]
    step: float | None
    functions: frozenset[str]
    reads: frozenset[str] = frozenset()
    units: tuple[str, ...] = KINDS

    @property
    def scores(self) -> bool:
        """Whether it gives scores that can be compared anywhere, rather than choosing in its own way."""
        return "score" in self.functions


@dataclass(frozen=True)
class Run:
    """The choices beside the pattern. ``allocation``: its name; ``widths``: (whose, number of inputs) of linear layers.

    ``blocks``: how many the model has, None where that is not known yet.
    """

    method: MethodFacts
    ratio: float | None
    allocation: str
    propagation: str
    widths: Iterable[tuple[str, int]] = field(default=())
    blocks: int | None = None


class Pattern(Protocol):
    """What may be removed together; frozen data. Make one with :func:`build_pattern`."""

    name: ClassVar[str]
    functions: ClassVar[tuple[tuple[str, ...], ...]]  # a method needs all of one of these
    default_allocation: ClassVar[str]
    several_shots: ClassVar[bool]
    narrows: ClassVar[
        bool
    ]  # compacted, its models are ordinary ones of smaller widths, timed unless a trial says no
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
    def needs(self) -> tuple[str, ...]:
        """Statistics that it looks at itself, whatever the method."""
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
        yield from _check_method(self, run)
        if self.name not in run.method.supports:
            return  # the rest would be about a pattern that cannot be
        yield from _check_stream(run)
        if run.allocation == BY_KIND:
            hint = "Neurons and heads are kinds of units."
            allowed = f"{UNIFORM} | {GLOBAL} | owl with sparsity.pattern={self.name}"
            yield ConfigError("allocation", run.allocation, allowed, hint)
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


@dataclass(frozen=True)
class Units:
    """Whole FFN neurons and attention heads (KV groups), or whole decoder blocks, with all weights that belong to each.

    ``counts``: what the ratio is a share of: ``units`` (of each kind in each unprotected block, as arXiv:2305.11627),
    ``decoder`` (weights of the blocks' linear maps, as arXiv:2312.11983) or ``model`` (all parameters). ``head_ratio``:
    heads lose this share whatever the scores, neurons the rest; None = scores or equal shares decide.
    ``protect_first``, ``protect_last``: blocks that lose nothing. ``min_units``: of each kind stay in every block; of
    blocks, in the model.
    ``rounding``: of shares of units: ``exact`` = down, ``published`` = neurons up, heads as many as whole ones are in their
    lines rounded up, as arXiv:2305.11627's code.
    ``compensation``: of ``COMPENSATION``.
    """

    kinds: tuple[str, ...] = KINDS
    counts: Counts = "decoder"
    head_ratio: float | None = None
    protect_first: int = 0
    protect_last: int = 0
    min_units: int = 1
    rounding: Rounding = "exact"
    compensation: str = "none"

    name: ClassVar[str] = "units"
    functions: ClassVar[tuple[tuple[str, ...], ...]] = (("importance",), ("study",))
    default_allocation: ClassVar[str] = UNIFORM
    several_shots: ClassVar[bool] = True
    narrows: ClassVar[bool] = True
    propagates: ClassVar[bool] = True

    group = None
    within = None
    fixed_ratio = None
    label = "units"

    @property
    def needs(self) -> tuple[str, ...]:
        """What the compensation looks at."""
        return COMPENSATION[self.compensation]

    @property
    def tag(self) -> str:
        """``units``, or the kinds where they are not all."""
        return self.name if self.kinds == KINDS else "-".join(self.kinds)

    def identity(self) -> dict[str, Any]:
        """Return what of the pattern decides a result."""
        return {"pattern": self.name} | {
            key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()
        }

    def check(self, run: Run) -> Iterator[ConfigError]:
        """Yield every mistake of a run with this pattern."""
        yield from _check_method(self, run)
        if self.name not in run.method.supports:
            return  # the rest would be about a pattern that cannot be
        yield from _check_stream(run, self.needs)
        protected = (self.protect_first, self.protect_last)
        if run.blocks is not None and sum(protected) >= run.blocks:
            allowed = f"fewer than the model's {run.blocks} blocks together"
            yield ConfigError("sparsity.protect_first, sparsity.protect_last", protected, allowed)
        unfit = [kind for kind in self.kinds if kind not in run.method.units]
        if unfit:
            allowed = f"of what method={run.method.name} can decide about: {', '.join(run.method.units)}"
            yield ConfigError("sparsity.kinds", list(self.kinds), allowed)
        if self.kinds == (BLOCKS,) and run.allocation != GLOBAL:
            hint = "Blocks are compared with each other; a share of every block is no block."
            yield ConfigError("allocation", run.allocation, f"{GLOBAL} with sparsity.kinds=[{BLOCKS}]", hint)
        elif run.allocation not in (UNIFORM, GLOBAL, BY_KIND):
            allowed = f"{UNIFORM} | {GLOBAL} | {BY_KIND} with sparsity.pattern={self.name}"
            yield ConfigError("allocation", run.allocation, allowed)
        if self.head_ratio is not None and run.allocation == GLOBAL:
            hint = "One ranking decides how many heads go."
            yield ConfigError("sparsity.head_ratio", self.head_ratio, f"null with allocation={GLOBAL}", hint)
        if self.compensation == "merge" and "merge" not in run.method.functions:
            others = " | ".join(kind for kind in COMPENSATION if kind != "merge")
            hint = f"method={run.method.name} does not say which unit stands in for which."
            yield ConfigError("sparsity.compensation", "merge", others, hint)
        if run.propagation == "pruned" and run.method.step is not None:
            hint = "Each shot looks at the model as the shots before have left it."
            yield ConfigError("sparsity.propagation", "pruned", "dense with method.step", hint)


PATTERNS: Mapping[str, type[Pattern]] = {kind.name: kind for kind in (RowsColumns, Unstructured, NM, Units)}
UNIT_KEYS = tuple(item.name for item in fields(Units) if item.name != "rounding")  # keys that only units have


def build_pattern(
    name: str, *, n: int | None = None, m: int | None = None, within: str | None = None,
    rounding: str | None = None, **units: Any,
) -> Pattern:  # fmt: skip
    """Return the checked pattern. ``name``: one of ``PATTERNS``, or e.g. ``2:4`` for ``n:m``. ``units``: fields of Units.

    Raises ConfigError for an unknown name, for fields where they have no meaning, unless 1 <= n < m.
    """
    units = {key: value for key, value in units.items() if value is not None}
    for key, value in units.items():
        if name != Units.name:
            raise ConfigError(f"sparsity.{key}", value, f"null with sparsity.pattern={name}")
    first, colon, second = name.partition(":")
    if colon and first.isdigit() and second.isdigit():
        name, n, m = NM.name, int(first), int(second)
    if name not in PATTERNS:
        raise ConfigError("sparsity.pattern", name, " | ".join(PATTERNS), nearest(name, PATTERNS))
    if within not in (None, "row", "matrix"):
        raise ConfigError("sparsity.within", within, "row | matrix | null (as the method's paper does it)")
    if rounding not in (None, "exact", "published"):
        raise ConfigError("sparsity.rounding", rounding, "exact | published")
    if rounding == "published" and name not in (Unstructured.name, Units.name):
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
    return _units(rounding or "exact", units) if name == Units.name else RowsColumns()


def _units(rounding: str, values: Mapping[str, Any]) -> Units:
    kinds = tuple(kind for kind in (*KINDS, BLOCKS) if kind in values.get("kinds", KINDS))
    if not kinds or len(kinds) != len(values.get("kinds", KINDS)) or (BLOCKS in kinds and len(kinds) > 1):
        allowed = f"one or more of {', '.join(KINDS)}, each once; or {BLOCKS} alone"
        raise ConfigError("sparsity.kinds", values["kinds"], allowed)
    pattern = Units(**{**values, "kinds": kinds, "rounding": rounding})
    if pattern.counts not in ("units", "decoder", "model"):
        raise ConfigError("sparsity.counts", pattern.counts, "units | decoder | model")
    if pattern.compensation not in COMPENSATION:
        known = " | ".join(COMPENSATION)
        hint = nearest(pattern.compensation, COMPENSATION)
        raise ConfigError("sparsity.compensation", pattern.compensation, known, hint)
    if kinds == (BLOCKS,) and pattern.compensation != "none":
        hint = "Nothing of a block is left that could make up for it."
        raise ConfigError(
            "sparsity.compensation", pattern.compensation, f"none with sparsity.kinds=[{BLOCKS}]", hint
        )
    if pattern.head_ratio is not None and set(kinds) != set(KINDS):
        hint = "There is one kind only, and the ratio is its own."
        raise ConfigError("sparsity.head_ratio", pattern.head_ratio, "null unless both kinds go", hint)
    return pattern


def pattern_of(values: Mapping[str, Any]) -> Pattern:
    """Return the pattern of a config's ``sparsity``, or of the identity that :meth:`Pattern.identity` gave."""
    return build_pattern(
        values["pattern"], n=values.get("n"), m=values.get("m"), within=values.get("within"),
        rounding=values.get("rounding"), **{key: values.get(key) for key in UNIT_KEYS},
    )  # fmt: skip


def times_speed(asked: bool | None, pattern: Pattern) -> bool:
    """Say whether a trial's model is timed: as ``asked``, or where that is left open as its pattern says."""
    return pattern.narrows if asked is None else asked


def settle(value: str | None, literals: Mapping[str, Any], key: str, default: str) -> str:
    """Return ``value``, or where it is left to the method what its class says of itself, or ``default``."""
    return str(literals.get(key, default)) if value in (None, BY_METHOD) else value


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


def _check_stream(run: Run, needs: tuple[str, ...] = ()) -> Iterator[ConfigError]:
    """Rules about the stream that statistics are taken on, where there is a choice; ``needs``: the pattern's own."""
    compared = run.allocation in (GLOBAL, BY_KIND)
    if run.propagation not in ("pruned", "dense"):
        yield ConfigError("sparsity.propagation", run.propagation, "pruned | dense")
    elif run.propagation == "pruned" and compared and (run.method.needs or needs):
        hint = "All layers are compared before any is pruned."
        yield ConfigError("sparsity.propagation", "pruned", f"dense with allocation={run.allocation}", hint)
    elif run.propagation == "pruned" and not run.method.reads.isdisjoint(BACKWARD):
        hint = "Gradients come from one walk back through the whole model, before any block is pruned."
        yield ConfigError("sparsity.propagation", "pruned", f"dense with method={run.method.name}", hint)


def between_error(pattern: Pattern, allocation: str, propagation: str) -> ConfigError | None:
    """Return why masks cannot be chosen block by block between repairs, None if they can.

    They can where a block's choice needs nothing of later blocks, and its statistics are those of the pruned stream.
    """
    if not pattern.propagates:
        what, hint = f"sparsity.pattern={pattern.name}", "Every shot compares the layers of all blocks."
    elif allocation in (GLOBAL, BY_KIND):
        what, hint = (
            f"allocation={allocation}",
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
