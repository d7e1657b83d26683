"""What the class of a method or a repair must have, read from its source: a job shall not be the first to miss it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunelab.config.field import ClassSource
from prunelab.errors import ConfigError, nearest

STRUCTURED = "rows_columns"
_FACTORS, _INPUTS = ("input_gram", "output_gram"), ("input_norm", "input_gram")  # what passes collect
_REPAIR = ("window", "stride", "early_stop", "repair")


def check_method(method: Mapping[str, Any], source: ClassSource, pattern: str) -> Iterator[ConfigError]:
    """Yield what a method lacks to prune by ``pattern``, one that it supports."""
    target = method.get("_target_")
    for attribute in ("needs", "supports"):
        if attribute not in source.literals:
            yield ConfigError(
                f"method.{attribute}",
                "(nothing)",
                "a literal tuple of strings in the class",
                f"See {target}.",
            )
    known = _FACTORS if pattern == STRUCTURED else _INPUTS
    if pattern in source.literals.get("supports", ()):
        for need in source.literals.get("needs", ()):
            if need not in known:
                allowed = f"of {', '.join(known)} with sparsity.pattern={pattern}"
                yield ConfigError(
                    "method.needs", need, allowed, nearest(str(need), known) or f"See {target}."
                )
        if pattern == STRUCTURED:
            able, wanted = {"costs", "update"} <= source.names, "costs and update"
        else:
            able, wanted = bool({"score", "prune"} & source.names), "score or prune"
        if not able:
            allowed = f"a class with {wanted} for sparsity.pattern={pattern}"
            yield ConfigError("method._target_", target, allowed, "See prunelab/methods/base.py.")


def check_repair(repair: Mapping[str, Any], source: ClassSource) -> Iterator[ConfigError]:
    """Yield what a repair of a class of its own lacks."""
    missing = [name for name in _REPAIR if name not in source.names]
    if missing:
        hint = f"It lacks {', '.join(missing)}; see prunelab/reconstruction/base.py."
        yield ConfigError(
            "reconstruction._target_", repair["_target_"], f"a class with {', '.join(_REPAIR)}", hint
        )
