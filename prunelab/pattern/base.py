"""What a pattern is, what is known of the run that it is asked about, and the rules that several patterns share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from prunelab.errors import ConfigError, nearest
from prunelab.statistic import BACKWARD, CLASSES, class_of

Within = Literal["row", "matrix"]
Propagation = Literal["pruned", "dense"]
Rounding = Literal["exact", "published"]
SCOPES = ("linear", "unit")  # what a method decides about at a time, and a pass exists for
UNIFORM, GLOBAL, BY_KIND = "uniform", "global", "by_kind"
BY_CLASS = ("allocation", "propagation", "compensation", "kinds")  # literals that a method's class may have
UNITS = "units"  # and one more: kinds of units that it can decide about, neurons and heads without it
BY_METHOD = "by_method"  # what the method's class says of itself, see :func:`settle`
NEURONS, HEADS, BLOCKS, ATTENTION, FFN = "neurons", "heads", "blocks", "attention", "ffn"
SUBLAYERS = (ATTENTION, FFN)  # of a block: all of its attention, all of its MLP
WHOLE = (BLOCKS, *SUBLAYERS)  # one to a block at most: compared with those of other blocks
KINDS = (NEURONS, HEADS)  # parts of a block; what is removed unless a method or a trial says otherwise
BEFORE, BETWEEN, BY_PATTERN = (
    "before",
    "between",
    "by_pattern",
)  # when masks are chosen, where a repair follows
UPDATE = "update_kept"  # what a method of single weights has that makes those that stay up for those that go
ROUNDED = 1e-4  # 0.6667 means two thirds


@dataclass(frozen=True)
class MethodFacts:
    """What is known of a method without running it. ``functions``: names its class defines; ``reads``: what the
    statistics in ``needs`` look at, as far as they are known; ``units``: kinds of units that it can decide about;
    ``judged``: allocations with which it can ask the whole model before units are chosen, () if it does not."""

    name: str
    scope: str
    supports: tuple[str, ...]
    needs: tuple[str, ...]
    step: float | None
    functions: frozenset[str]
    reads: frozenset[str] = frozenset()
    units: tuple[str, ...] = KINDS
    judged: tuple[str, ...] = ()

    @property
    def scores(self) -> bool:
        """Whether it gives scores that can be compared anywhere, rather than choosing in its own way."""
        return "score" in self.functions

    @property
    def looks_again(self) -> bool:
        """Whether single weights of all layers are looked at before any is pruned: in shots, or to update what stays."""
        return self.step is not None or UPDATE in self.functions


@dataclass(frozen=True)
class Supply:
    """``count`` units of ``kind`` in block ``block``, of ``cost`` parameters each."""

    kind: str
    block: int
    count: int
    cost: int


@dataclass(frozen=True)
class Run:
    """The choices beside the pattern. ``allocation``: its name; ``widths``: (whose, number of inputs) of linear layers.

    ``blocks``: how many the model has, None where that is not known yet. ``neurons``: how many each block has, as far as
    known. ``supply``: units of every kind of every block, as far as known.
    """

    method: MethodFacts
    ratio: float | None
    allocation: str
    propagation: str
    widths: Iterable[tuple[str, int]] = field(default=())
    blocks: int | None = None
    neurons: tuple[int, ...] = ()
    supply: tuple[Supply, ...] = ()


class Pattern(Protocol):
    """What may be removed together; frozen data. Make one with :func:`build_pattern`."""

    name: ClassVar[str]
    functions: ClassVar[tuple[tuple[str, ...], ...]]  # a method needs all of one of these
    default_allocation: ClassVar[str]
    default_propagation: ClassVar[str]
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


def settle(value: str | None, literals: Mapping[str, Any], key: str, default: str) -> str:
    """Return ``value``, or where it is left to the method what its class says of itself, or ``default``."""
    return str(literals.get(key, default)) if value in (None, BY_METHOD) else value


def default_stream(pattern: type[Pattern], method: MethodFacts, allocation: str | None) -> str:
    """Return the stream that statistics are taken on where neither trial nor method says: the pattern's own, or the dense
    one where a comparison of all layers, gradients, several shots or updates ask for it."""
    compared = allocation in (GLOBAL, BY_KIND) and bool(method.needs)
    dense = compared or method.looks_again or not method.reads.isdisjoint(BACKWARD)
    return "dense" if pattern.propagates and dense else pattern.default_propagation


def check_method(pattern: Pattern, run: Run) -> Iterator[ConfigError]:
    """Rules of what a method can do."""
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
    if method.judged and pattern.name != UNITS:
        yield ConfigError(
            "sparsity.pattern", pattern.name, f"{UNITS} with these fields of method={method.name}"
        )
    fixed, ratio = pattern.fixed_ratio, run.ratio
    if ratio is None or not 0 <= ratio < 1:
        yield ConfigError("sparsity.ratio", ratio, "a number, 0 <= x < 1", "It is the removed fraction.")
    elif fixed is not None and abs(ratio - fixed) > ROUNDED:
        yield ConfigError("sparsity.ratio", ratio, f"{fixed:g}, what {pattern.label} removes")


def check_stream(run: Run, needs: tuple[str, ...] = ()) -> Iterator[ConfigError]:
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
    elif run.propagation == "pruned" and run.method.looks_again:
        hint = "Each shot looks at the model as the shots before have left it."
        yield ConfigError("sparsity.propagation", "pruned", "dense with method.step", hint)


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
