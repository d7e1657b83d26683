"""What the class of a method or a repair must have, read from its source: a job shall not be the first to miss it.

The rules of patterns stand in :mod:`prunelab.pattern`; here their facts are read without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunelab.config.domain import KEY
from prunelab.config.field import ClassSource, read_class
from prunelab.errors import ConfigError
from prunelab.pattern.base import KINDS, UNITS, MethodFacts
from prunelab.pattern.judged import HELD_OUT, JUDGED, judged_with, windows_error
from prunelab.statistic import READS, class_of

_LITERALS = {
    "scope": "a string such as 'linear'",
    "needs": "a tuple of strings",
    "supports": "a tuple of strings",
}
_REPAIR = {"block": ("window", "stride", "early_stop", "repair"), "model": ("repair",)}  # by scope
WHOLE = "model"  # the scope of a repair that takes the pruned model all at once, in steps of its own


def method_facts(method: Mapping[str, Any], source: ClassSource) -> MethodFacts:
    """Return what the rules ask of a method whose class has all that :func:`check_method` looks for."""
    needs = tuple(source.literals["needs"])
    reads = (str(read_class(target).literals.get("reads")) for need in needs if (target := class_of(need)))
    return MethodFacts(
        str(method["name"]), str(source.literals["scope"]), tuple(source.literals["supports"]), needs,
        method["step"], source.names, frozenset(reads), tuple(source.literals.get(UNITS, KINDS)),
        judged_with(method, source.literals.get(JUDGED, ())),
    )  # fmt: skip


def check_windows(config: Mapping[str, Any], source: ClassSource) -> Iterator[ConfigError]:
    """Yield what is wrong with the number of windows where a method keeps some for judging; ``source``: of its class."""
    method = config["method"]
    if not judged_with(method, source.literals.get(JUDGED, ())):
        return
    n, least = config["calibration"]["n_samples"], 2 if KEY in source.literals else 1
    error = windows_error(n, method.get(HELD_OUT), least, str(method["name"]))
    if error is not None:
        yield error


def check_method(method: Mapping[str, Any], source: ClassSource) -> Iterator[ConfigError]:
    """Yield what a method's class lacks to be asked about patterns."""
    target = method.get("_target_")
    for name, kind in _LITERALS.items():
        if name not in source.literals:
            yield ConfigError(
                f"method.{name}", "(nothing)", f"{kind}, a literal in the class", f"See {target}."
            )
    for need in source.literals.get("needs", ()):
        if "." not in str(need):
            continue
        try:
            statistic = read_class(str(need), "method.needs")
        except ConfigError as error:
            yield error
            continue
        if statistic.literals.get("reads") not in READS:
            allowed = f"a class with reads = one of {', '.join(READS)}"
            yield ConfigError("method.needs", need, allowed, "See prunelab/stats/base.py.")


def repair_scope(source: ClassSource) -> str:
    """Return what a repair takes at a time, by its class: ``block`` unless it says otherwise."""
    return str(source.literals.get("scope", "block"))


def check_repair(
    repair: Mapping[str, Any], source: ClassSource, group: str = "reconstruction"
) -> Iterator[ConfigError]:
    """Yield what a repair of a class of its own lacks; ``group``: where it stands in the config."""
    scope = repair_scope(source)
    if scope not in _REPAIR:
        yield ConfigError(f"{group}.scope", scope, " | ".join(_REPAIR), f"In {repair['_target_']}.")
        return
    missing = [name for name in _REPAIR[scope] if name not in source.names]
    if missing:
        hint = f"It lacks {', '.join(missing)}; see prunelab/reconstruction/base.py."
        allowed = f"a class with {', '.join(_REPAIR[scope])}"
        yield ConfigError(f"{group}._target_", repair["_target_"], allowed, hint)
