"""The pattern of whole units: FFN neurons, attention heads, sub-layers, decoder blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from prunelab.errors import ConfigError, nearest
from prunelab.pattern.base import (
    BLOCKS,
    BY_KIND,
    GLOBAL,
    KINDS,
    NEURONS,
    SUBLAYERS,
    UNIFORM,
    WHOLE,
    Rounding,
    Run,
    check_method,
    check_stream,
)
from prunelab.statistic import BACKWARD

Counts = Literal["units", "decoder", "model"]
COMPENSATION: Mapping[
    str, tuple[str, ...]
] = {  # how the output map makes up for removed inputs: what it looks at
    "none": (),
    "bias": ("input_moments",),
    "least_squares": ("input_moments", "input_gram"),
    "merge": (),  # the method says which unit stands in for which, from what it looked at itself
}


@dataclass(frozen=True)
class Units:
    """Whole FFN neurons and attention heads (KV groups), whole attentions and MLPs, or whole decoder blocks, with all weights
    that belong to each.

    ``counts``: what the ratio is a share of: ``units`` (of each kind in each unprotected block, as arXiv:2305.11627),
    ``decoder`` (weights of the blocks' linear maps, as arXiv:2312.11983) or ``model`` (all parameters). ``head_ratio``:
    heads lose this share whatever the scores, neurons the rest; None = scores or equal shares decide.
    ``protect_first``, ``protect_last``: blocks that lose nothing. ``min_units``: of each kind stay in every block; of
    blocks and sub-layers, in the model.
    ``rounding``: of shares of units: ``exact`` = down, ``published`` = neurons up, heads as many as whole ones are in their
    lines rounded up, as arXiv:2305.11627's code. ``round_to``: neurons that stay in a block which loses some are a multiple
    of it, as kernels like it; None: any number.
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
    round_to: int | None = None

    name: ClassVar[str] = "units"
    functions: ClassVar[tuple[tuple[str, ...], ...]] = (("importance",), ("study",))
    default_allocation: ClassVar[str] = UNIFORM
    default_propagation: ClassVar[str] = "dense"
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
        found = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        if self.round_to is None:  # results from before there was the field keep their keys
            del found["round_to"]
        return {"pattern": self.name} | found

    def check(self, run: Run) -> Iterator[ConfigError]:
        """Yield every mistake of a run with this pattern."""
        yield from check_method(self, run)
        if self.name not in run.method.supports:
            return  # the rest would be about a pattern that cannot be
        yield from check_stream(run, self.needs)
        yield from _check_judged(run)
        protected = (self.protect_first, self.protect_last)
        if run.blocks is not None and sum(protected) >= run.blocks:
            allowed = f"fewer than the model's {run.blocks} blocks together"
            yield ConfigError("sparsity.protect_first, sparsity.protect_last", protected, allowed)
        if self.round_to is not None and run.neurons and self.round_to >= min(run.neurons):
            hint = "A block without neurons, or with all of them, is all that would be left to choose."
            allowed = f"less than the model's {min(run.neurons)} neurons in a block"
            yield ConfigError("sparsity.round_to", self.round_to, allowed, hint)
        unfit = [kind for kind in self.kinds if kind not in run.method.units]
        if unfit:
            allowed = f"of what method={run.method.name} can decide about: {', '.join(run.method.units)}"
            yield ConfigError("sparsity.kinds", list(self.kinds), allowed)
        if set(self.kinds) <= set(SUBLAYERS) and run.allocation not in (GLOBAL, BY_KIND):
            hint = "Sub-layers are compared with each other; a share of one is no sub-layer."
            allowed = f"{GLOBAL} | {BY_KIND} with sparsity.kinds=[{','.join(self.kinds)}]"
            yield ConfigError("allocation", run.allocation, allowed, hint)
        elif self.kinds == (BLOCKS,) and run.allocation != GLOBAL:
            hint = "Blocks are compared with each other; a share of every block is no block."
            yield ConfigError("allocation", run.allocation, f"{GLOBAL} with sparsity.kinds=[{BLOCKS}]", hint)
        elif run.allocation not in (UNIFORM, GLOBAL, BY_KIND):
            allowed = f"{UNIFORM} | {GLOBAL} | {BY_KIND} with sparsity.pattern={self.name}"
            yield ConfigError("allocation", run.allocation, allowed)
        if self.head_ratio is not None and run.allocation == GLOBAL:
            hint = "One ranking decides how many heads go."
            yield ConfigError("sparsity.head_ratio", self.head_ratio, f"null with allocation={GLOBAL}", hint)
        yield from self._too_much(run)
        if self.compensation == "merge" and "merge" not in run.method.functions:
            others = " | ".join(kind for kind in COMPENSATION if kind != "merge")
            hint = f"method={run.method.name} does not say which unit stands in for which."
            yield ConfigError("sparsity.compensation", "merge", others, hint)

    def _too_much(self, run: Run) -> Iterator[ConfigError]:
        """What all open units together cannot give, where the model's are known. Equal shares of units stop at what there
        is; what a ratio of all parameters is a share of, headers do not say; limits of single kinds the job tells."""
        capped = self.counts == "units" and self.head_ratio is None and run.allocation == UNIFORM
        if not run.supply or run.ratio is None or capped or self.counts == "model":
            return
        last = max(one.block for one in run.supply) - self.protect_last
        own = [one for one in run.supply if one.kind in self.kinds]
        may_go = [one for one in own if self.protect_first <= one.block <= last]
        by_units = self.counts == "units"
        whole = sum(one.cost for one in run.supply if one.kind == BLOCKS)
        asked = run.ratio * (sum(one.count for one in may_go) if by_units else whole)
        most, dearest = 0, max((1 if by_units else one.cost for one in may_go), default=0)
        for kind in self.kinds:
            gives = [one for one in may_go if one.kind == kind]
            if kind in WHOLE:
                closed = sum(one.kind == kind for one in own) - len(gives)
                gives = sorted(gives, key=lambda one: -one.cost)[
                    : max(0, len(gives) + min(0, closed - self.min_units))
                ]
            spare = 0 if kind in WHOLE else self.min_units
            most += sum(max(0, one.count - spare) * (1 if by_units else one.cost) for one in gives)
        if asked > most + dearest:
            what = "units" if by_units else "parameters"
            hint = (
                f"{asked:,.0f} {what} are asked for; {most:,} can go. See sparsity.kinds, counts, protect_first, "
                "protect_last and min_units."
            )
            yield ConfigError("sparsity.ratio", run.ratio, "a share that the open units can give", hint)


def build_units(rounding: str, values: Mapping[str, Any]) -> Units:
    """Return the checked pattern of its fields; ConfigError for what none of them can be."""
    kinds = tuple(kind for kind in (*KINDS, *WHOLE) if kind in values.get("kinds", KINDS))
    together = (KINDS, SUBLAYERS, (BLOCKS,))
    fits = any(set(kinds) <= set(group) for group in together)
    if not kinds or len(kinds) != len(values.get("kinds", KINDS)) or not fits:
        allowed = (
            f"one or more of {', '.join(KINDS)}, each once; or of {', '.join(SUBLAYERS)}; or {BLOCKS} alone"
        )
        raise ConfigError("sparsity.kinds", values["kinds"], allowed)
    pattern = Units(**{**values, "kinds": kinds, "rounding": rounding})
    if pattern.counts not in ("units", "decoder", "model"):
        raise ConfigError("sparsity.counts", pattern.counts, "units | decoder | model")
    if pattern.compensation not in COMPENSATION:
        known = " | ".join(COMPENSATION)
        hint = nearest(pattern.compensation, COMPENSATION)
        raise ConfigError("sparsity.compensation", pattern.compensation, known, hint)
    if kinds[0] in WHOLE and pattern.compensation != "none":
        hint = "Nothing of what goes as a whole is left that could make up for it."
        allowed = f"none with sparsity.kinds=[{','.join(kinds)}]"
        raise ConfigError("sparsity.compensation", pattern.compensation, allowed, hint)
    if pattern.round_to is not None and NEURONS not in kinds:
        hint = "It counts neurons; all else goes as wholes."
        raise ConfigError(
            "sparsity.round_to", pattern.round_to, f"null without {NEURONS} in sparsity.kinds", hint
        )
    if pattern.head_ratio is not None and set(kinds) != set(KINDS):
        hint = "There is one kind only, and the ratio is its own."
        raise ConfigError("sparsity.head_ratio", pattern.head_ratio, "null unless both kinds go", hint)
    return pattern


def _check_judged(run: Run) -> Iterator[ConfigError]:
    """Rules of a method that asks the whole model: all prices come first, so all statistics are of the model as it is."""
    method = run.method
    if not method.judged:
        return
    if "weigh" not in method.functions:
        yield ConfigError("method", method.name, "a class with weigh", "See prunelab/methods/base.py.")
    if run.allocation in (UNIFORM, GLOBAL, BY_KIND) and run.allocation not in method.judged:
        allowed = f"{' | '.join(method.judged)} with these fields of method={method.name}"
        yield ConfigError("allocation", run.allocation, allowed, "It decides how much each block loses.")
    if run.propagation == "pruned" and run.allocation == UNIFORM and method.reads.isdisjoint(BACKWARD):
        hint = "It asks the whole model's loss before any block is pruned."
        yield ConfigError("sparsity.propagation", "pruned", f"dense with method={method.name}", hint)
