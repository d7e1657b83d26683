"""A checked trial between its two files: attributes, made of what Hydra composed or ``plan.json`` keeps, and plain again.

Keys that a config does not have are not the same as null: neither the plan nor an identity may gain one on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from prunelab.config.schema import (
    Calibration,
    Evaluation,
    Group,
    Model,
    Option,
    Paths,
    ReconstructionData,
    Runtime,
    Sparsity,
    Tracking,
    Trial,
)

_GROUPS: Mapping[str, type[Group]] = {
    "model": Model, "calibration": Calibration, "sparsity": Sparsity, "reconstruction_data": ReconstructionData,
    "evaluation": Evaluation, "tracking": Tracking, "runtime": Runtime, "paths": Paths,
}  # fmt: skip
_OPTIONS = ("allocation", "method", "reconstruction", "between_shots")
_LATER = ("between_shots",)  # plans of before have none

G = TypeVar("G", bound=Group)


def typed(config: Mapping[str, Any]) -> Trial:
    """Return a trial without mistakes as its classes. Raises KeyError or TypeError for a config of other keys."""
    groups: dict[str, Any] = {key: group_of(kind, config[key]) for key, kind in _GROUPS.items()}
    options = {
        key: _option(str(config[key]["name"]), config[key])
        for key in _OPTIONS
        if key in config or key not in _LATER
    }
    return group_of(Trial, {**config, **groups, **options, "stages": _named(config["stages"])})


def typed_corpora(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Calibration]:
    """Return the checked specs of corpora by name as their class."""
    return {name: group_of(Calibration, spec) for name, spec in specs.items()}


def group_of(kind: type[G], values: Mapping[str, Any]) -> G:
    """Return a group with ``values``, whose keys and their order it keeps (as a `dataclasses.replace` of it would not).

    Raises TypeError for other keys than its own.
    """
    values = dict(values)
    if kind is Evaluation:
        values["metrics"] = _named(values["metrics"])
    group = kind(**values)
    # Its own attributes are the keys as written, and nothing else; for those that may be absent the class has defaults.
    own = vars(group)
    own.clear()
    own.update(values)
    return group


def _named(options: Mapping[str, Any]) -> dict[str, Option]:
    return {name: _option(name, option) for name, option in dict(options).items()}


def _option(name: str, fields: Mapping[str, Any]) -> Option:
    return Option(name, fields.get("_target_"), fields)


def plain(group: Group) -> dict[str, Any]:
    """Return a group, an option or a whole trial as it was written: the same keys in the same order."""
    if isinstance(group, Option):
        return dict(group.fields)
    return {key: _plain(value) for key, value in vars(group).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Group):
        return plain(value)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
