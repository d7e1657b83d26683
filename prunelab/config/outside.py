"""Stages of classes from outside the package: ``stages: {latency: {_target_: mine.Latency, ...}}`` in a trial's config.

What they are given and what they return stands in :mod:`prunelab.stages.outside`; here is what can be said of them
without importing them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prunelab.config.field import ClassSource, read_class
from prunelab.errors import ConfigError, nearest

READS = ("mask", "test", "held_out")  # roles of a trial's token sets
_FOLDERS = ("locks", "quarantine")  # of a store, beside those of its kinds


def stage_source(name: str, option: Mapping[str, Any]) -> ClassSource:
    """Return what the class of a stage says; raises ConfigError if there is none."""
    return read_class(str(option.get("_target_", "")), f"stages.{name}._target_")


def reads(name: str, option: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the token sets that a stage reads beside the trial's weights."""
    return tuple(stage_source(name, option).literals.get("reads", ()))


def check_stage(name: str, option: Any, kinds: tuple[str, ...]) -> Iterator[ConfigError]:
    """Yield what is wrong with a stage's name and class; its fields are checked like those of any option.

    ``kinds`` are the kinds of stages that prunelab has itself.
    """
    key = f"stages.{name}"
    taken = (*kinds, *READS, *_FOLDERS, "reconstruction")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name in taken:
        allowed = "small letters, digits and _ (it names a folder and a column), but none of " + ", ".join(
            taken
        )
        yield ConfigError(f"{key} (its name)", name, allowed)
    if not isinstance(option, Mapping) or "_target_" not in option:
        hint = f"For example {key}={{_target_: mine.Latency, repeats: 3}}; see prunelab/stages/outside.py."
        yield ConfigError(
            key, option, "a mapping with _target_, the dotted name of a class, and its fields", hint
        )
        return
    try:
        source = stage_source(name, option)
    except ConfigError as error:
        yield error
        return
    if "run" not in source.names:
        hint = "See prunelab/stages/outside.py."
        yield ConfigError(
            f"{key}._target_", option["_target_"], "a class with a method run(self, trial)", hint
        )
    for word in source.literals.get("reads", ()):
        if word not in READS:
            yield ConfigError(f"{key}: reads", word, f"of {', '.join(READS)}", nearest(str(word), READS))
