"""The table of patterns, and how one is made from a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from prunelab.errors import ConfigError, nearest
from prunelab.pattern.base import Pattern
from prunelab.pattern.units import Units, build_units
from prunelab.pattern.weights import NM, RowsColumns, Unstructured

PATTERNS: Mapping[str, type[Pattern]] = {kind.name: kind for kind in (RowsColumns, Unstructured, NM, Units)}
UNIT_KEYS = tuple(item.name for item in fields(Units) if item.name != "rounding")  # keys that only units have


def build_pattern(
    name: str, *, n: int | None = None, m: int | None = None, within: str | None = None,
    rounding: str | None = None, **units: Any,
) -> Pattern:  # fmt: skip
    """Return the checked pattern. ``name``: one of ``PATTERNS``, or e.g. ``2:4`` for ``n:m``. ``units``: fields of Units.

    Raises ConfigError for an unknown name, for fields where they have no meaning, unless 1 <= n < m.
    """
    units = {key: value for key, value in units.items() if value is not None}
    for key, value in units.items():
        if name != Units.name:
            raise ConfigError(f"sparsity.{key}", value, f"null with sparsity.pattern={name}")
    first, colon, second = name.partition(":")
    if colon and first.isdigit() and second.isdigit():
        name, n, m = NM.name, int(first), int(second)
    if name not in PATTERNS:
        raise ConfigError("sparsity.pattern", name, " | ".join(PATTERNS), nearest(name, PATTERNS))
    if within not in (None, "row", "matrix"):
        raise ConfigError("sparsity.within", within, "row | matrix | null (as the method's paper does it)")
    if rounding not in (None, "exact", "published"):
        raise ConfigError("sparsity.rounding", rounding, "exact | published")
    if rounding == "published" and name not in (Unstructured.name, Units.name):
        hint = "Its counts are whole numbers."
        raise ConfigError("sparsity.rounding", rounding, f"exact with sparsity.pattern={name}", hint)
    if name == NM.name:
        if n is None or m is None or not 1 <= n < m:
            hint = "n of every m consecutive inputs are kept."
            raise ConfigError("sparsity.n, sparsity.m", (n, m), "1 <= n < m", hint)
        if within is not None:
            hint = "Groups of m compete."
            raise ConfigError("sparsity.within", within, "null with sparsity.pattern=n:m", hint)
        return NM(n, m)
    if (n, m) != (None, None):
        raise ConfigError("sparsity.n, sparsity.m", (n, m), f"null with sparsity.pattern={name}")
    if name == Unstructured.name:
        return Unstructured(within, rounding or "exact")  # type: ignore[arg-type]
    if within is not None:
        raise ConfigError("sparsity.within", within, f"null with sparsity.pattern={name}")
    return build_units(rounding or "exact", units) if name == Units.name else RowsColumns()


def pattern_of(values: Mapping[str, Any]) -> Pattern:
    """Return the pattern of a config's ``sparsity``, or of the identity that :meth:`Pattern.identity` gave."""
    return build_pattern(
        values["pattern"], n=values.get("n"), m=values.get("m"), within=values.get("within"),
        rounding=values.get("rounding"), **{key: values.get(key) for key in UNIT_KEYS},
    )  # fmt: skip


def times_speed(asked: bool | None, pattern: Pattern) -> bool:
    """Say whether a trial's model is timed: as ``asked``, or where that is left open as its pattern says."""
    return pattern.narrows if asked is None else asked
