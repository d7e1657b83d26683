"""Mistakes that no trial makes alone: what has to be one in a study, and names that would mean two things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunelab.config.compose import Problem
from prunelab.config.outside import OWN_METRICS, STAGES
from prunelab.errors import ConfigError

_ONE_PER_STUDY = ("study", "paths.root", "paths.store", "paths.study")


def check_together(
    configs: Sequence[Mapping[str, Any]], corpora: Sequence[Mapping[str, Mapping[str, Any]]] = ()
) -> Iterator[Problem]:
    """Yield what is wrong with all trials of a study as a whole; each config may be half checked.

    ``corpora`` are the specs of each trial's corpora by name.
    """
    yield from _one_per_study(configs)
    yield from _one_class_per_name(configs)
    yield from _one_text_per_name(configs, corpora)


def _one_text_per_name(
    configs: Sequence[Mapping[str, Any]], corpora: Sequence[Mapping[str, Mapping[str, Any]]]
) -> Iterator[Problem]:
    """Columns go by names: perplexities on two files of one stem would stand in one. A trial's calibration tells its file."""
    known: dict[str, Any] = {}
    for number, (config, specs) in enumerate(zip(configs, corpora, strict=False)):
        for name, spec in specs.items():
            if name == _at(config, "calibration.name"):
                continue
            path = spec.get("path")
            if known.setdefault(name, path) != path:
                hint = f"{known[name]} and {path} have one name: rename one, or measure both in every trial."
                yield Problem(
                    ConfigError("evaluation.corpora", name, "one file for a name in a study", hint), (number,)
                )


def _one_per_study(configs: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """A sweep is one study in one folder: another value would be ignored, and its results written to the first."""
    for key in _ONE_PER_STUDY:
        values = [str(_at(config, key)) for config in configs]
        if len(set(values)) > 1 and not (key != "study" and _follows_study(configs, key)):
            shown = list(dict.fromkeys(values))
            others = tuple(number for number, value in enumerate(values) if value != values[0])
            hint = f"Give it one value, or start a command for each. First: {shown[0]}."
            yield Problem(
                ConfigError(key, ",".join(shown), "one value in all trials of a study", hint), others
            )


def _follows_study(configs: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Say whether a place differs only because the study's name, told already, is part of it."""
    return len({(str(_at(c, "study")), str(_at(c, key))) for c in configs}) == len(
        {str(_at(c, "study")) for c in configs}
    )


def _one_class_per_name(configs: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Rows go by names: two classes under one name would be compared as one method with another number of seeds."""
    known: dict[tuple[str, str], str] = {}
    clashes: dict[tuple[str, str, str], list[int]] = {}
    for number, config in enumerate(configs):
        for group, name, target in _classes(config):
            if known.setdefault((group, name), target) != target:
                clashes.setdefault((group, name, target), []).append(number)
    for (group, name, target), trials in clashes.items():
        hint = f"It also names {known[group, name]}: give {target} a name of its own, in its YAML file or as {group}.name=..."
        yield Problem(
            ConfigError(f"{group}.name", name, "one class for a name in a study", hint), tuple(trials)
        )


def _classes(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (group, name, class) of every option that brings a class; those from outside bear their names as keys."""
    named = [
        (group, option.get("name"), option) for group, option in config.items() if isinstance(option, Mapping)
    ]
    for group in (STAGES, OWN_METRICS):
        options = _at(config, group)
        named += (
            [(group, name, option) for name, option in options.items()]
            if isinstance(options, Mapping)
            else []
        )
    for group, name, option in named:
        if isinstance(option, Mapping) and "_target_" in option:
            yield group, str(name), str(option["_target_"])


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
