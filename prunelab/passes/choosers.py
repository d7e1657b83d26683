"""The one table of choosers, by the name of the pattern."""

from __future__ import annotations

from prunelab.models.decoder import Decoder
from prunelab.passes.chooser import Build, Chooser
from prunelab.passes.elements import Elements
from prunelab.passes.lines import Lines
from prunelab.passes.units import UnitGroups
from prunelab.pattern.base import Pattern

CHOOSERS: dict[str, Build] = {
    "rows_columns": lambda pattern, decoder: Lines(pattern),
    "unstructured": lambda pattern, decoder: Elements(pattern),
    "n:m": lambda pattern, decoder: Elements(pattern),
    "units": UnitGroups,
}


def chooser_of(pattern: Pattern, decoder: Decoder) -> Chooser:
    """Return the chooser of a pattern for a model."""
    return CHOOSERS[pattern.name](pattern, decoder)
