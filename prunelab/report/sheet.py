"""Tables as CSV: long.csv of every number with protocols.csv, blocks.csv of what was evaluated, repairs.csv of repairs."""

from __future__ import annotations

from dataclasses import fields

import pandas as pd

from prunelab.metric import Protocol
from prunelab.report.collect import LONG, Study
from prunelab.report.table import csv_text

_WHOSE = ("number", "name", "seed", "facet", "variant", "ratio")


def blocks_csv(study: Study) -> str:
    """blocks.csv: a row per trial, block and stream of the evaluation; ``overfit``: over the fitted stream's error."""
    return _joined(study, study.blocks)


def repairs_csv(study: Study) -> str:
    """repairs.csv: a row per repaired trial and block; errors on all windows of the text that it was fitted to."""
    return _joined(study, study.repairs)


def long_csv(study: Study) -> str:
    """long.csv: a row per trial and number: stage, metric, of what, seed, value, unit, better direction, protocol's digest."""
    # a number that is none was measured all the same; gaps have no row here
    return csv_text(study.long.assign(value=study.long["value"].map(lambda v: "nan" if v != v else v)), LONG)


def protocols_csv(study: Study) -> str:
    """protocols.csv: a row per protocol, by the digest that long.csv names; what does not apply is empty."""
    names = ["protocol", *(field.name for field in fields(Protocol))]
    rows = [{"protocol": digest, **protocol} for digest, protocol in study.protocols.items()]
    return csv_text(pd.DataFrame(rows, columns=names, dtype=object), names)


def _joined(study: Study, table: pd.DataFrame) -> str:
    rows = study.frame[list(_WHOSE)].merge(table, on="number").sort_values(["number", "block"], kind="stable")
    return csv_text(rows, [*_WHOSE, *(column for column in table.columns if column != "number")])
