"""The one table of choosers, by the name of the pattern."""

from __future__ import annotations

from prunelab.passes.chooser import Build, Chooser
from prunelab.passes.elements import Elements
from prunelab.passes.lines import Lines
from prunelab.pattern import Pattern

CHOOSERS: dict[str, Build] = {"rows_columns": Lines, "unstructured": Elements, "n:m": Elements}


def chooser_of(pattern: Pattern) -> Chooser:
    """Return the chooser of a pattern."""
    return CHOOSERS[pattern.name](pattern)
