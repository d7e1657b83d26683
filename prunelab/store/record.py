"""A stage's record: what was asked, what came out. Small, versioned JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunelab.config.fingerprint import fingerprint
from prunelab.config.version import SCHEMA, other_schema
from prunelab.errors import ConfigError, StoreError
from prunelab.store.layout import RECORD

_LIMIT = 256 << 20  # bytes; a larger record is not one of ours


@dataclass(frozen=True)
class Record:
    """``metrics`` and ``tables`` repeat bit for bit on the same machine, but for speeds (:func:`prunelab.metric.is_clock`);
    ``cost`` and ``provenance`` do not.

    ``protocols``: how each metric was measured (:class:`prunelab.metric.Protocol`); ``rows``: of metrics from outside the
    package (:class:`prunelab.metric.Metric`).
    """

    kind: str
    key: str
    slug: str
    identity: Mapping[str, Any]
    inputs: Mapping[str, str]
    metrics: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    cost: Mapping[str, Any]
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_bytes(self) -> bytes:
        """Return the JSON text; infinite and undefined numbers are kept as the strings inf, -inf, nan."""
        return json.dumps(_finite(asdict(self)), indent=1, sort_keys=True, allow_nan=False).encode("utf-8")


def read_record(folder: Path, key: str | None = None) -> Record:
    """Read the record of a stage's folder, which is made of what its key says, and of ``key`` if one is asked for.

    Every reader comes here: a result that was put under a key by hand, or by another class than the one in the
    key, is nobody's number.

    Raises:
        StoreError: the record is missing, damaged, of another schema, or under a key that is not its own.
    """
    path = folder / RECORD
    try:
        if path.stat().st_size > _LIMIT:
            raise StoreError(f"{path} is larger than {_LIMIT >> 20} MiB: not a record.")
        plain = json.loads(path.read_bytes())
        if plain.get("schema") != SCHEMA:
            hint = "It stays as it is; run the study's command again, which makes results of this version beside it."
            raise StoreError(f"{other_schema(path, plain.get('schema'))} {hint}")
        record = Record(**plain)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}. Delete its folder and run the study again."
        ) from error
    try:
        made = fingerprint(record.kind, record.identity, record.inputs)
    except (ConfigError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder} holds a record that is none of ours: {error}") from error
    asked = record.key if key is None else key
    if made != asked:
        raise StoreError(f"{folder} holds what belongs under key {made[:16]}, not under {asked[:16]}.")
    return record


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def number(value: Any) -> float:
    """Return a metric as a float; ``inf`` and ``nan`` come back from their strings."""
    return float(value)
