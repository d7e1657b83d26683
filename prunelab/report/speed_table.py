"""The table of compacted models: tokens per second and bytes, each beside the dense model of the same run."""

from __future__ import annotations

import pandas as pd

from prunelab.metric import BYTES, PARAMETERS, SPEED, SPEEDUP, Metric
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
NOTE = (
    "The compacted model, without what was removed, beside the dense one in one process: both took turns, and the median "
    "round counts. Prefill: prompts are read at once; decode: tokens are written after them one by one, with a cache. "
    "Tokens per second compare with others of the same machine only; what is divided by the dense model's was measured in "
    "the same run. Bytes: of the parameters, tied ones once. How many tokens, on which device: below, how each number was "
    "measured."
)


def speed_tables(study: Study) -> list[ResultTable]:
    """A table for each facet with trials that were timed; none where none was."""
    if SPEEDUP.at("decode") not in study.frame:
        return []
    frame = study.frame.copy()
    small, dense = (pd.to_numeric(frame[BYTES.at(of)], errors="coerce") for of in ("compact", "dense"))
    frame[SHARE.name] = small / dense
    tables = (_table(study, frame[frame["facet"] == facet], facet) for facet in study.facets)
    return [table for table in tables if table.rows]


def _table(study: Study, frame: pd.DataFrame, facet: str) -> ResultTable:
    timed = frame[pd.to_numeric(frame[SPEEDUP.at("decode")], errors="coerce").notna()]
    columns = [column for column in _COLUMNS if column[0] in timed]
    cells = by_cell(timed, [name for name, *_ in columns])
    order = {variant: place for place, variant in enumerate(study.variants)}
    cells = cells.assign(_order=cells["variant"].map(order)).sort_values(["ratio", "_order"])
    rows, starts, last = list[tuple[Cell, ...]](), list[bool](), None
    for row in cells.to_dict("records"):
        made = [Cell(f"{row['ratio']:.4g}"), Cell(str(row["variant"]))]
        made += [cell_of(row, name, metric.text) for name, _, _, metric in columns]
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
