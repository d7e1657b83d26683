"""Per block and per seed as CSV: blocks.csv of what was evaluated, repairs.csv of what repairs said of themselves."""

from __future__ import annotations

import pandas as pd

from prunelab.report.collect import Study
from prunelab.report.table import csv_text

_WHOSE = ("number", "name", "seed", "facet", "variant", "ratio")


def blocks_csv(study: Study) -> str:
    """blocks.csv: a row per trial, block and stream of the evaluation; ``overfit``: over the fitted stream's error."""
    return _joined(study, study.blocks)


def repairs_csv(study: Study) -> str:
    """repairs.csv: a row per repaired trial and block; errors on all windows of the text that it was fitted to."""
    return _joined(study, study.repairs)


def _joined(study: Study, table: pd.DataFrame) -> str:
    rows = study.frame[list(_WHOSE)].merge(table, on="number").sort_values(["number", "block"], kind="stable")
    return csv_text(rows, [*_WHOSE, *(column for column in table.columns if column != "number")])
