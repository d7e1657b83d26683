"""Plain data to a key: canonical JSON, then sha256. Values that do not serialise the same way twice are refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from prunelab.config.number import canonical_numbers
from prunelab.config.version import SCHEMA
from prunelab.errors import ConfigError


def canonical(value: Any, where: str = "identity") -> str:
    """Return the one JSON text of ``value``: sorted keys, floats of 12 digits, no NaN.

    Raises ConfigError for anything but None, bool, int, finite float, str, list, tuple and str-keyed mappings.
    """
    return json.dumps(
        _plain(value, where), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def fingerprint(kind: str, identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the key of a stage: 64 hex digits of sha256 over schema, kind, identity and the inputs' keys."""
    text = canonical({"schema": SCHEMA, "kind": kind, "identity": identity, "inputs": inputs})
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(where, value, "a finite number")
        return canonical_numbers(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where}.{key}", key, "a string as key")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise ConfigError(where, value, "plain data: null, boolean, number, string, list or mapping")
