"""Metrics rows in W&B's terms: flat names without dots, and an axis for each kind of event."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST_TABLE = 64
AXES = ("shot", "block", "step", "tokens")


def flat_row(row: Mapping[str, Any]) -> dict[str, float | int]:
    """A metrics row as history.

    ``{"event": "block", "block": 2, "stream": "calibration", "error": 0.1}`` becomes
    ``{"block": 2, "block/error/calibration": 0.1}``: text qualifies the names; booleans become 0 and 1.
    """
    event = str(row.get("event") or "")
    words = [clean(value) for key, value in row.items() if key != "event" and isinstance(value, str)]
    flat: dict[str, float | int] = {}
    for key, value in row.items():
        number = as_number(value)
        if number is None:
            continue
        if key in AXES:
            flat[key] = number
        else:
            flat["/".join([*([clean(event)] if event else []), clean(key), *words])] = number
    return flat


def axis_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """(pattern of names, axis) that ``define_metric`` needs for this row, or None where it has no axis."""
    event = str(row.get("event") or "")
    axis = event if event in AXES and event in row else next((axis for axis in AXES if axis in row), None)
    return (f"{clean(event)}/*", axis) if event and axis else None


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config with top-level keys that panels can name: dots become underscores, values stay plain JSON."""
    return {clean(key): plain(value) for key, value in config.items()}


def clean(name: object) -> str:
    """A metric or config name without dots, which W&B would read as nesting."""
    return str(name).replace(".", "_")


def short(name: str) -> str:
    """``name``, or its start and a digest of all of it: W&B makes a table an artefact, whose name has 128 characters."""
    if len(name) <= LONGEST_TABLE:
        return name
    return f"{name[: LONGEST_TABLE - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def as_number(value: Any) -> float | int | None:
    """``value`` as a plain number, or None where it is not one. NumPy scalars are understood."""
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, (int, float)):
        item = getattr(value, "item", None)
        value = item() if callable(item) else None
    return value if isinstance(value, (int, float)) else None


def plain(value: Any) -> Any:
    """``value`` as JSON data: mappings, lists, numbers, text, null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    number = as_number(value)
    return str(value) if number is None else number


def columns_and_data(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns (in order of appearance) and rows of a W&B table; what is missing or not finite is None."""
    rows = [dict(row) for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[_cell(row.get(column)) for column in columns] for row in rows]


def _cell(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
