"""What a method object says of itself, as planning reads it from its source."""

from __future__ import annotations

from typing import Any

from prunelab.pattern.base import KINDS, UNITS, UPDATE, MethodFacts
from prunelab.pattern.judged import JUDGED, judged_with
from prunelab.stats.base import load_statistic


def facts_of(method: Any) -> MethodFacts:
    """Return the facts of a built method; ConfigError for a statistic that does not exist."""
    functions = (
        name
        for name in ("score", "prune", "costs", "update", "importance", "study", "merge", "weigh", UPDATE)
        if hasattr(method, name)
    )
    return MethodFacts(
        name=method.name, scope=method.scope, supports=tuple(method.supports), needs=tuple(method.needs),
        step=method.step, functions=frozenset(functions),
        reads=frozenset(load_statistic(need).reads for need in method.needs),
        units=tuple(getattr(method, UNITS, KINDS)),
        judged=judged_with(vars(method), getattr(method, JUDGED, ())),
    )  # fmt: skip
