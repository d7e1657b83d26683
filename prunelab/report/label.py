"""Short names for what varies in a study: a facet (model and text) and a variant (method and the rest)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunelab.config.data import SAME, parts_of
from prunelab.config.vary import first_digits, is_still, said_by_method

SILENT = ("paths", "tracking", "study", "seed", "hydra")  # never part of a comparison
SIZES = ("calibration.n_samples", "calibration.seq_len")  # a choice like others, named in the variant
AXES = ("sparsity.ratio", *SIZES)  # drawn along an axis or named otherwise, so not named again
FACETS = ("model", "calibration", "evaluation")  # rows that differ here are not compared with each other
REPAIR, DATA = "reconstruction", "reconstruction_data"
BETWEEN = "between_shots"
NO_REPAIR = "none"
_BETWEEN = "between shots"
SEPARATOR = " · "  # between the names of a facet
HIDDEN_FIELDS = ("_target_",)  # two classes under one name are refused


@dataclass(frozen=True)
class Label:
    """``facet``: which rows are comparable; ``variant``: what is compared at each ratio.

    A variant's parts: ``mask`` (method, pattern and what else decides which weights stay), ``size`` of the
    calibration text (windows × tokens; empty unless it varies), ``repair`` and ``data`` that it fits to (empty:
    the mask's tokens). ``model``: its name, and what tells it from others of that name.
    """

    facet: str
    variant: str
    mask: str
    size: str
    repair: str
    data: str
    model: str


def label_trials(configs: Sequence[Mapping[str, Any]]) -> list[Label]:
    """A label for each config, naming only what differs between them; order as given."""
    flat = [
        {
            key: "" if key in said else value
            for key, value in flatten(config).items()
            if key.endswith(".name") or not (is_still(key) or key in said)
        }
        for config, said in zip(configs, said_by_method(configs), strict=True)
    ]
    varying = {
        group: _group_labels(flat, group)
        for group in dict.fromkeys(key.split(".")[0] for one in flat for key in one)
        if group not in SILENT
    }
    if BETWEEN in varying:
        varying[BETWEEN] = ["" if name == NO_REPAIR else f"{name} {_BETWEEN}" for name in varying[BETWEEN]]
    sizes = _sizes(flat)
    repairs = varying.pop(REPAIR, [NO_REPAIR] * len(flat))
    named = varying.pop(DATA, [""] * len(flat))
    data = [
        "" if fits_same(c) else name.replace("parts.", "") for c, name in zip(configs, named, strict=True)
    ]
    several = {group for group, names in varying.items() if len(set(names)) > 1}
    where = [g for g in FACETS if g in several or (g == "calibration" and g in varying)]
    what = [g for g in varying if g == "method" or (g in several and g not in FACETS)]
    told = [names if len(set(names)) > 1 else [""] * len(flat) for names in (repairs, data, sizes)]
    labels = []
    for index in range(len(flat)):
        mask = " + ".join(name for group in what if (name := varying[group][index]))
        words = [mask, *(names[index] for names in told)]
        labels.append(
            Label(
                SEPARATOR.join(varying[group][index] for group in where) or "all",
                " + ".join(word for word in words if word) or "trial",
                mask,
                told[2][index],
                repairs[index],
                data[index],
                varying["model"][index] if "model" in varying else "",
            )
        )
    return labels


def brief(facets: Sequence[str]) -> dict[str, str]:
    """Each facet without the names that all of them have, for where room is scarce; one facet alone as it is."""
    parts = [facet.split(SEPARATOR) for facet in facets]
    if len(set(map(len, parts))) != 1 or len(set(facets)) < 2:
        return {facet: facet for facet in facets}
    differ = [len(set(names)) > 1 for names in zip(*parts, strict=True)]
    return {
        facet: SEPARATOR.join(name for name, kept in zip(names, differ, strict=True) if kept)
        for facet, names in zip(facets, parts, strict=True)
    }


def in_words(facet: str) -> str:
    """A facet in a sentence: ``calibrated on austen``; several names, of a model and a text, as they are."""
    return facet if SEPARATOR in facet else f"calibrated on {facet}"


def heading(facet: str) -> str:
    """A facet as a heading."""
    return facet if SEPARATOR in facet else f"Calibrated on {facet}"


def fits_same(config: Mapping[str, Any]) -> bool:
    """Whether nothing is fitted to other tokens than those that the mask was chosen on."""
    if not isinstance(config.get(DATA), Mapping) or config[REPAIR].get("name") == NO_REPAIR:
        return True
    whole = config["calibration"]["n_samples"]
    return parts_of(config[DATA].get("parts"), whole) == {SAME: whole}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _sizes(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """Windows × tokens of each one's calibration text."""
    pairs = [tuple(one.get(key, "?") for key in SIZES) for one in flat]
    return [f"{count} × {length}" for count, length in pairs]


def _group_labels(flat: Sequence[Mapping[str, Any]], group: str) -> list[str]:
    """The group's name in each config, with the fields that differ between configs of the same name."""
    main = "sparsity.pattern" if group == "sparsity" else f"{group}.name"
    names = [str(one.get(main, one.get(group, group))) for one in flat]
    fields: dict[str, dict[str, set[str | None]]] = {}
    keys = {
        key for one in flat for key in one if key.startswith(f"{group}.") and key != main and key not in AXES
    }
    for one, name in zip(flat, names, strict=True):
        for key in sorted(keys):
            fields.setdefault(name, {}).setdefault(key, set()).add(_text(one[key]) if key in one else None)
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
    return first_digits(value) if isinstance(value, str) else json.dumps(value, default=str)
