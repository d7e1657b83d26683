"""The table of compacted models: tokens per second and bytes, each beside the dense model of the same run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from prunelab.metric import BYTES, PARAMETERS, SPEED, SPEEDUP, Metric
from prunelab.plan.kind import DENSE
from prunelab.report.aggregate import by_cell
from prunelab.report.collect import Study
from prunelab.report.table import Cell, ResultTable, cell_of

SHARE = Metric("bytes_of_dense", "bytes over the dense model's", form="percent")
_PARAMETERS, _BYTES = PARAMETERS.at("compact"), BYTES.at("compact")
_COLUMNS: tuple[tuple[str, str, str, Metric], ...] = (  # number, group, word, metric
    (SPEED.at("prefill"), "prefill", "tokens/s", SPEED),
    (SPEEDUP.at("prefill"), "prefill", "÷ dense", SPEEDUP),
    (SPEED.at("decode"), "decode", "tokens/s", SPEED),
    (SPEEDUP.at("decode"), "decode", "÷ dense", SPEEDUP),
    (_BYTES, "weights", "bytes", BYTES),
    (SHARE.name, "weights", "of dense", SHARE),
    (_PARAMETERS, "weights", "parameters", PARAMETERS),
)
_QUARTILES = [SPEEDUP.at(f"{end}/{phase}") for phase in ("prefill", "decode") for end in ("low", "high")]
NOTE = (
    "The compacted model, without what was removed, beside the dense one in one process: both took turns, and the median "
    "round counts. Prefill: prompts are read at once; decode: tokens are written after them one by one, with a cache. "
    "Tokens per second compare with others of the same machine only; what is divided by the dense model's was measured in "
    "the same rounds. Bytes: of the parameters, tied ones once. How many tokens, on which device: below, how each number was "
    "measured."
)
SMALL_PRINT = (
    " Small print: the middle half of the rounds; where 1 lies in it they do not say which is faster."
)


def speed_tables(study: Study) -> list[ResultTable]:
    """A table for each facet with trials that were timed; none where none was."""
    if SPEEDUP.at("decode") not in study.frame:
        return []
    frame = study.frame.copy()
    small, dense = (pd.to_numeric(frame[BYTES.at(of)], errors="coerce") for of in ("compact", DENSE))
    frame[SHARE.name] = small / dense
    tables = (_table(study, frame[frame["facet"] == facet], facet) for facet in study.facets)
    return [table for table in tables if table.rows]


def _table(study: Study, frame: pd.DataFrame, facet: str) -> ResultTable:
    timed = frame[pd.to_numeric(frame[SPEEDUP.at("decode")], errors="coerce").notna()]
    columns = [column for column in _COLUMNS if column[0] in timed]
    cells = by_cell(timed, [*(name for name, *_ in columns), *_QUARTILES])
    order = {variant: place for place, variant in enumerate(study.variants)}
    cells = cells.assign(_order=cells["variant"].map(order)).sort_values(["ratio", "_order"])
    rows, starts, last = list[tuple[Cell, ...]](), list[bool](), None
    for row in cells.to_dict("records"):
        made = [Cell(f"{row['ratio']:.4g}"), Cell(str(row["variant"]))]
        made += [_cell(row, name, metric) for name, _, _, metric in columns]
        rows.append(tuple(made))
        starts.append(row["ratio"] != last)
        last = row["ratio"]
    groups = [
        ("", 2),
        *((title, sum(c[1] == title for c in columns)) for title in dict.fromkeys(c[1] for c in columns)),
    ]
    return ResultTable(
        facet,
        tuple(groups),
        ("ratio", "method", *(word for _, _, word, _ in columns)),
        tuple(rows),
        tuple(starts),
    )


def _cell(row: dict[str, Any], name: str, metric: Metric) -> Cell:
    """The mean over seeds; in small print its spread, and the middle half of the rounds."""
    cell, phase = cell_of(row, name, metric.text), SPEEDUP.rest(name)
    ends = [row.get(SPEEDUP.at(f"{end}/{phase}")) for end in ("low", "high")]
    if metric is not SPEEDUP or None in ends:
        return cell
    half = " – ".join(metric.text(float(end)) for end in ends)
    return replace(cell, aside=" · ".join(word for word in (cell.aside, half) if word))
