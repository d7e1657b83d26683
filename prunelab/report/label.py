"""Short names for what varies in a study: a facet (model and text) and a variant (method and the rest)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SILENT = ("paths", "runtime", "tracking", "study", "seed", "hydra")  # never part of a comparison
AXES = ("sparsity.ratio",)  # drawn along an axis, so not named again
FACETS = ("model", "calibration", "evaluation")  # rows that differ here are not compared with each other
HIDDEN_FIELDS = ("revision", "digest", "_target_")


@dataclass(frozen=True)
class Label:
    """``facet``: which rows are comparable; ``variant``: what is compared at each ratio."""

    facet: str
    variant: str


def label_trials(configs: Sequence[Mapping[str, Any]]) -> list[Label]:
    """A label for each config, naming only what differs between them; order as given."""
    flat = [flatten(config) for config in configs]
    varying = {
        group: _group_labels(flat, group)
        for group in dict.fromkeys(key.split(".")[0] for one in flat for key in one)
        if group not in SILENT
    }
    several = {group for group, names in varying.items() if len(set(names)) > 1}
    where = [g for g in FACETS if g in several or (g == "calibration" and g in varying)]
    what = [g for g in varying if g == "method" or (g in several and g not in FACETS)]
    return [
        Label(
            " · ".join(varying[group][index] for group in where) or "all",
            " + ".join(varying[group][index] for group in what) or "trial",
        )
        for index in range(len(flat))
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _group_labels(flat: Sequence[Mapping[str, Any]], group: str) -> list[str]:
    """The group's name in each config, with the fields that differ between configs of the same name."""
    main = "sparsity.pattern" if group == "sparsity" else f"{group}.name"
    names = [str(one.get(main, one.get(group, group))) for one in flat]
    fields: dict[str, dict[str, set[str]]] = {}
    for one, name in zip(flat, names, strict=True):
        for key, value in one.items():
            if key.startswith(f"{group}.") and key != main and key not in AXES:
                fields.setdefault(name, {}).setdefault(key, set()).add(_text(value))
    labels = []
    for one, name in zip(flat, names, strict=True):
        differ = [
            f"{key[len(group) + 1 :]}={_text(one[key])}"
            for key, values in fields.get(name, {}).items()
            if len(values) > 1 and key in one and key.rsplit(".", 1)[-1] not in HIDDEN_FIELDS
        ]
        labels.append(f"{name} ({', '.join(differ)})" if differ else name)
    return labels


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
