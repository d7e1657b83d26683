"""The one spelling of a number: what keys, names and labels see of a config."""

from __future__ import annotations

from typing import Any

_DIGITS = 12  # fewer than a double holds, so that 0.1 + 0.2 and 0.3 are one ratio; more than anybody types


def canonical_numbers(value: Any) -> Any:
    """Return plain data (copied) with every float rounded to 12 significant digits; -0.0 becomes 0.0.

    A sweep of ``range(0.1,0.5,0.1)`` makes 0.30000000000000004; without this it would be another trial than 0.3.
    """
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") + 0.0
    if isinstance(value, dict):
        return {str(key): canonical_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical_numbers(item) for item in value]
    return value
