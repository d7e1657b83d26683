"""The table of repairs: what each one made of the error, on what it was fitted to and elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from prunelab.metric import (
    LM_AFTER,
    LM_BEFORE,
    MEAN_HELD_OUT,
    MEAN_MSE,
    MSE_FITTED,
    ON_CALIBRATION,
    REPAIR,
    error,
    number,
)
from prunelab.report.aggregate import SPREAD, by_cell
from prunelab.report.collect import Study
from prunelab.report.derive import chosen
from prunelab.report.label import NO_REPAIR
from prunelab.report.table import Cell, ResultTable, cell_of

BEFORE, AFTER, PER_BLOCK = REPAIR.at("before"), REPAIR.at("after"), REPAIR.at("per_block")
NEAR, FAR = "against/calibration", "against/held_out"
_LOSS = {LM_BEFORE: "before", LM_AFTER: "after"}
_MSE = {MSE_FITTED: "fitted", MEAN_MSE.name: "held-out"}


def repair_tables(study: Study) -> list[ResultTable]:
    """A table for each facet with repairs; none where nothing is repaired.

    Last block, before and after: relative error on the text of the repair, the block as pruned and as repaired
    after repaired blocks. Per block: geometric mean of after over before. Language-model loss, where a repair trains
    the whole model: mean per token in nats on the text of the repair, as pruned and as repaired. Per element: mean
    squared error after the last block. Against no repair: change of the relative error to the same mask's without repair.
    """
    frame = _with_repairs(study)
    return [_table(study, frame, facet) for facet in study.facets if _any(frame, facet)]


def _any(frame: pd.DataFrame, facet: str) -> bool:
    return bool((frame.loc[frame["facet"] == facet, "repair"] != NO_REPAIR).any())


def _with_repairs(study: Study) -> pd.DataFrame:
    """The frame with the columns of the table, a value per trial."""
    own = study.repairs.sort_values("block")
    ends = own.groupby("number").last()
    ratio = own["error"].where(own["error"] > 0) / own["error_before"].where(own["error_before"] > 0)
    factor = np.exp(np.log(ratio).groupby(own["number"]).mean())
    frame = study.frame.copy()
    for name, values in ((BEFORE, ends["error_before"]), (AFTER, ends["error"]), (PER_BLOCK, factor)):
        frame[name] = frame["number"].map(values)
    same = ["facet", "chosen", "ratio", "seed"]
    frame["chosen"] = chosen(frame)
    for name, column in ((NEAR, ON_CALIBRATION), (FAR, MEAN_HELD_OUT.name)):
        if column not in frame:
            continue
        value = pd.to_numeric(frame[column], errors="coerce")
        bare = value.where(frame["repair"] == NO_REPAIR)
        keys = [frame[key].astype(str) for key in same]
        frame[name] = (value / bare.groupby(keys).transform("first")).where(frame["repair"] != NO_REPAIR)
    return frame


def _table(study: Study, frame: pd.DataFrame, facet: str) -> ResultTable:
    frame = frame.loc[frame["facet"] == facet, :]
    known = [c for c in (*_LOSS, *_MSE) if c in frame and frame[c].notna().any()]
    names = [BEFORE, AFTER, PER_BLOCK, *known]
    against = [c for c in (NEAR, FAR) if c in frame and frame[c].notna().any()]
    names += against
    cells = by_cell(frame, names)
    order = {variant: place for place, variant in enumerate(study.variants)}
    cells = cells.assign(_order=cells["variant"].map(order)).sort_values(["ratio", "_order"])
    masks = frame.drop_duplicates("variant").set_index("variant")["chosen"]
    several = frame["repair"].nunique() > 1
    rows, starts, last = list[tuple[Cell, ...]](), list[bool](), None
    for row in cells.to_dict("records"):
        first = (Cell(f"{row['ratio']:.4g}"), Cell(str(row["variant"])))
        rows.append((*first, *(_entry(row, name) for name in names)))
        now = (row["ratio"], masks[row["variant"]] if several else "")
        starts.append(now != last)
        last = now
    loss, mse = ([name for name in group if name in names] for group in (_LOSS, _MSE))
    groups = [("", 2), ("last block, fitted text", 2), ("per block", 1), ("language-model loss", len(loss))]
    groups += [("mean squared error", len(mse))]
    groups += [("against no repair", len(against))]
    header = ["ratio", "method", "before", "after", "after ÷ before"]
    header += [*(_LOSS[name] for name in loss), *(_MSE[name] for name in mse)]
    header += [{NEAR: "calibration", FAR: "held-out"}[name] for name in against]
    shown = tuple(group for group in groups if group[1])
    return ResultTable(facet, shown, tuple(header), tuple(rows), tuple(starts))


def _entry(row: dict[str, Any], name: str) -> Cell:
    if name in (NEAR, FAR):
        cell = cell_of(row, name, _change)
        spread = row.get(name + SPREAD, math.nan)
        return Cell(cell.text, f"± {100 * spread:.1f}%" if math.isfinite(spread) else "")
    return cell_of(row, name, number if name == PER_BLOCK else error)


def _change(factor: float) -> str:
    return f"{100 * (factor - 1):+.1f}%" if math.isfinite(factor) else "—"
