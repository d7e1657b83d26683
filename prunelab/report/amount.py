"""Figures over an amount of text: windows of a part that repairs fit to, windows of calibration, their length.

An amount is an axis where trials that agree in everything else have two values of it or more. Trials without a
part stand at 0, so what a repair makes of the mask's tokens alone is where the axis of the other part begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunelab.config.data import GENERATED, RECIPE, SAME
from prunelab.metric import MEAN_ACC, MEAN_HELD_OUT, MEAN_OVERFIT, MEAN_PPL, ON_FITTED, metric_of
from prunelab.report.aggregate import at_ratio
from prunelab.report.collect import Study, suffixes
from prunelab.report.curves import DENSE, fitted_name
from prunelab.report.derive import distinct
from prunelab.report.figure import empty, literal, log_axis, panels, plain_number
from prunelab.report.key import SAME_TEXT, Factors
from prunelab.report.label import DATA, NO_REPAIR

_SAME = f"{DATA}/{SAME}"
_OF_MASK = "of_mask"  # windows of the mask that a repair fits to: a count, or "all"
MEASURED = (ON_FITTED, MEAN_HELD_OUT.name, MEAN_OVERFIT.name, MEAN_PPL.name, MEAN_ACC)


@dataclass(frozen=True, eq=False)
class Amount:
    """An axis: ``name`` for files, ``title`` with its unit, and ``rows``: the trials that lie on it, with columns
    ``amount`` and ``rest`` (what else tells their lines apart, as text).
    """

    name: str
    title: str
    rows: pd.DataFrame


def amounts(study: Study, ratio: float) -> list[Amount]:
    """The axes of a study at ``ratio``: parts first, then the calibration's number of windows and length."""
    frame = _with_parts(study, at_ratio(study.frame, ratio))
    parts = [f"{DATA}/{part}" for part in suffixes(study.frame, f"{DATA}/") if part != SAME]
    parts += [_SAME] if _SAME in study.frame else []
    found = []
    for column in [*parts, "n_samples", "seq_len"]:
        others = [c for c in [*parts, "n_samples", "seq_len", _OF_MASK] if c not in (column, _SAME)]
        if column == _SAME:
            others.remove(_OF_MASK)
        rows = frame[frame["repair"] != NO_REPAIR] if column in parts else frame
        rows = _on_axis(rows, column, others)
        if len(rows):
            found.append(Amount(column.rpartition("/")[2], _title(column), rows))
    return found


def _with_parts(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Counts as numbers, 0 where a repair has none of a part; ``recipe``: how the dense model wrote, as text."""
    frame = frame.copy()
    for part in suffixes(frame, f"{DATA}/"):
        counts = pd.to_numeric(frame[f"{DATA}/{part}"], errors="coerce").fillna(0)
        frame[f"{DATA}/{part}"] = counts.where(frame["repair"] != NO_REPAIR, 0)
    if _SAME in frame:  # all of the mask's windows grow with their number
        whole = (frame[_SAME] == frame["n_samples"]) | (frame["repair"] == NO_REPAIR)
        frame[_OF_MASK] = frame[_SAME].map("{:g}".format).where(~whole, "all")
    else:
        frame[_OF_MASK] = "all"
    column = f"{DATA}/{GENERATED}"
    written = frame[column].tolist() if column in frame else [0.0] * len(frame)
    own = [
        _recipe(study.trials[number]["config"]) if count > 0 else None
        for number, count in zip(frame["number"], written, strict=True)
    ]
    known = {recipe for recipe in own if recipe is not None}
    only = known.pop() if len(known) == 1 else ""
    return frame.assign(recipe=[only if recipe is None else recipe for recipe in own])


def _recipe(config: Mapping[str, Any]) -> str:
    data = config.get(DATA) or {}
    return ", ".join(f"{key}={data[key]}" for key in RECIPE if key in data)


def _on_axis(rows: pd.DataFrame, column: str, others: Sequence[str]) -> pd.DataFrame:
    """Rows whose line has two amounts or more; NaN amounts lie on no axis."""
    rows = rows.assign(amount=pd.to_numeric(rows[column], errors="coerce")).dropna(subset=["amount"])
    varying = [c for c in [*others, "recipe"] if rows[c].nunique(dropna=False) > 1]
    words = [rows[c].map(lambda value, c=c: _short(c) + _plain(value)) for c in varying]
    rest = pd.concat(words, axis=1).agg(", ".join, axis=1) if words and len(rows) else ""
    rows = rows.assign(rest=rest)
    several = rows.groupby(["facet", "mask", "repair", "rest"])["amount"].transform("nunique") > 1
    return rows[several]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(column: str) -> str:
    known = {
        "n_samples": "windows: ",
        "seq_len": "tokens per window: ",
        "recipe": "",
        _OF_MASK: "windows of the mask: ",
    }
    return known.get(column, f"{column.rpartition('/')[2]}: ")


def _title(column: str) -> str:
    part = column.rpartition("/")[2]
    titles = {"n_samples": "windows of calibration text", "seq_len": "tokens per calibration window"}
    return titles.get(column, f"windows of {SAME_TEXT if part == SAME else part}")


def over_amount(study: Study, amount: Amount) -> Figure:
    """Errors, over-fitting index, perplexity and, with tasks, accuracy over an amount: a row per facet, a line for all
    that is equal.
    """
    rows = amount.rows
    factors = Factors(*(distinct(rows[name]) for name in ("repair", "mask", "rest")), title="with")
    facets = [facet for facet in study.facets if facet in set(rows["facet"])]
    measured = [c for c in MEASURED if c in rows and pd.to_numeric(rows[c], errors="coerce").notna().any()]
    figure, grid = panels(
        len(facets), max(1, len(measured)), 2.3, groups=factors.groups, left=0.6, gap_x=0.5, gap_y=0.75
    )
    titles = {ON_FITTED: f"error, {fitted_name(study).split()[0]}", MEAN_HELD_OUT.name: "error, held-out"}
    titles |= {MEAN_OVERFIT.name: "over-fitting index", MEAN_PPL.name: "perplexity", MEAN_ACC: "accuracy"}
    values = sorted(rows["amount"].unique())
    for line, facet in zip(grid, facets, strict=True):
        for axes, column in zip(line, measured, strict=False):
            _lines(axes, rows[rows["facet"] == facet], column, values, factors)
            name = f"{facet}: " if len(facets) > 1 else ""
            axes.set_title(literal(name + titles[column]))
            axes.set_xlabel(literal(amount.title))
            axes.set_xticks(range(len(values)), [plain_number(value) for value in values])
        _same_height(line[:2] if measured[:2] == list(MEASURED)[:2] else [])
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, column: str, values: Sequence[float], factors: Factors) -> None:
    cells = rows.assign(value=pd.to_numeric(rows[column], errors="coerce")).dropna(subset=["value"])
    if cells.empty:
        return empty(axes, "no finished trial")
    for (repair, mask, rest), own in cells.groupby(["repair", "mask", "rest"], sort=False):
        points = own.groupby("amount")["value"].agg(["mean", "std"])
        at, look = [values.index(amount) for amount in points.index], factors.look(repair, mask, rest)
        axes.plot(at, points["mean"], **look)
        axes.errorbar(
            at, points["mean"], yerr=points["std"].fillna(0), fmt="none", ecolor=look["color"], elinewidth=1
        )
    axes.set_xlim(-0.3, len(values) - 0.7)
    if column == MEAN_OVERFIT.name:
        axes.axhline(1, **DENSE)
        low, high = cells["value"].min(), cells["value"].max()
        if 0 < low < high / 5 and np.isfinite(high):  # else the small ones would lie on one line
            log_axis(axes)
    elif _logarithmic(column) and (cells["value"] > 0).all() and np.isfinite(cells["value"]).all():
        log_axis(axes)
    return None


def _logarithmic(column: str) -> bool:
    metric = metric_of(column)
    return metric is not None and metric.axis == "log"


def _same_height(line: Sequence[Axes]) -> None:
    drawn = [axes for axes in line if axes.axison]
    limits = np.array([axes.get_ylim() for axes in drawn]).reshape(-1, 2)
    for axes in drawn:
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        if axes.get_yscale() == "log":
            log_axis(axes)
