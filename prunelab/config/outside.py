"""Classes from outside the package that bear their names as keys: stages (``stages: {latency: {_target_: mine.Latency}}``)
and metrics (``evaluation.metrics: {top5: {_target_: mine.TopK}}``) of a trial's config.

What they are given and what they return stands in :mod:`prunelab.stages.outside` and :mod:`prunelab.stages.measured`; here
is what can be said of them without importing them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator, Mapping
from typing import Any

from prunelab.config.field import ClassSource, read_class
from prunelab.errors import ConfigError, nearest
from prunelab.metric import BETTER, FORMS, METRICS

STAGES, OWN_METRICS = "stages", "evaluation.metrics"
READS = ("mask", "test", "held_out")  # roles of a trial's token sets
_FOLDERS = ("locks", "quarantine")  # of a store, beside those of its kinds
_PARTS = {part for known in METRICS for part in known.split("/")}  # of the names of numbers
_EXAMPLES = {
    STAGES: "{_target_: mine.Latency, repeats: 3}; see prunelab/stages/outside.py.",
    OWN_METRICS: "{_target_: mine.TopK, k: 5}; see prunelab/stages/measured.py.",
}


def outside_source(group: str, name: str, option: Mapping[str, Any]) -> ClassSource:
    """Return what the class of ``group``'s option says; raises ConfigError if there is none."""
    return read_class(str(option.get("_target_", "")), f"{group}.{name}._target_")


def reads(name: str, option: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the token sets that a stage reads beside the trial's weights."""
    return tuple(outside_source(STAGES, name, option).literals.get("reads", ()))


def check_stage(name: str, option: Any, kinds: tuple[str, ...]) -> Iterator[ConfigError]:
    """Yield what is wrong with a stage's name and class; its fields are checked like those of any option.

    ``kinds`` are the kinds of stages that prunelab has itself.
    """
    taken = {*kinds, *READS, *_FOLDERS, *_PARTS, "reconstruction"}  # its numbers stand beside all others
    source = yield from _check(STAGES, name, option, taken, "run(self, trial)")
    for word in source.literals.get("reads", ()) if source else ():
        if word not in READS:
            yield ConfigError(
                f"{STAGES}.{name}: reads", word, f"of {', '.join(READS)}", nearest(str(word), READS)
            )


def check_metric(name: str, option: Any, taken: Collection[str]) -> Iterator[ConfigError]:
    """Yield what is wrong with the name and the class of a metric; its fields are checked like those of any option.

    ``taken``: the kinds of stages, prunelab's own and those of the trial, whose names stand before numbers too.
    """
    taken = {*taken, *READS, *_PARTS}
    source = yield from _check(OWN_METRICS, name, option, taken, "measure(self, decoder, tokens, batch_size)")
    if source is None:
        return
    title = source.literals.get("title")
    if not isinstance(title, str) or not title:
        yield ConfigError(
            f"{OWN_METRICS}.{name}: title", title, "a text, a literal in the class", _EXAMPLES[OWN_METRICS]
        )
    for word, allowed in (("better", BETTER), ("form", tuple(FORMS))):
        value = source.literals.get(word)
        if value not in allowed:
            hint = nearest(str(value), allowed)
            yield ConfigError(
                f"{OWN_METRICS}.{name}: {word}", value, f"a literal in the class: {' | '.join(allowed)}", hint
            )


def _check(
    group: str, name: str, option: Any, taken: Collection[str], function: str
) -> Generator[ConfigError, None, ClassSource | None]:
    """Yield what is wrong with a name and a class that has to have ``function``; return what the class says, if it is one."""
    key = f"{group}.{name}"
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name in taken:
        allowed = "small letters, digits and _ (it names a folder and a column), but none of "
        yield ConfigError(f"{key} (its name)", name, allowed + ", ".join(sorted(taken)))
    if not isinstance(option, Mapping) or "_target_" not in option:
        allowed = "a mapping with _target_, the dotted name of a class, and its fields"
        yield ConfigError(key, option, allowed, f"For example {key}={_EXAMPLES[group]}")
        return None
    try:
        source = outside_source(group, name, option)
    except ConfigError as error:
        yield error
        return None
    if function.partition("(")[0] not in source.names:
        allowed = f"a class with a method {function}"
        yield ConfigError(
            f"{key}._target_", option["_target_"], allowed, f"See {_EXAMPLES[group].partition('see ')[2]}"
        )
    return source
