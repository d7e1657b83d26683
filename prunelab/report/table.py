"""Rows to text: results.csv, the main table as cells, and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from prunelab.metric import (
    ACC,
    COST,
    ERROR,
    MEAN_ACC,
    MEAN_HELD_OUT,
    MEAN_OVERFIT,
    MEAN_PPL,
    OF_PARAMETERS,
    OF_UNITS,
    OF_WEIGHTS,
    ON_CALIBRATION,
    ON_OWN_TEXT,
    PPL,
    RATIO,
    Metric,
    is_clock,
)  # fmt: skip
from prunelab.report.aggregate import SPREAD, by_cell
from prunelab.report.collect import DONE, Study, collect
from prunelab.report.derive import chosen, of_dense

IDENTITY = ("number", "name", "status", "reason", "model", "pattern", "ratio", "allocation", "method")
IDENTITY += ("reconstruction", "reconstruction_data", "calibration", "n_samples", "seq_len", "seed")
IDENTITY += ("facet", "variant", "mask", "size", "repair", "data", "key")
_REMOVED = {OF_WEIGHTS: "weights", OF_PARAMETERS: "parameters", OF_UNITS: "units"}
_ERRORS = {  # on the mask's tokens, on a repair's own, on held-out text, and held-out over what was fitted
    ON_CALIBRATION: "calibration",
    ON_OWN_TEXT: "own text",
    MEAN_HELD_OUT.name: "held-out",
    MEAN_OVERFIT.name: "over-fitting",
}
PERPLEXITY, ACCURACY, REMOVED, ERRORS = "perplexity", "accuracy", "removed", "error"  # titles of groups


@dataclass(frozen=True)
class Cell:
    """One entry of a table: ``text``, an aside in small print, and whether it is the best of its group."""

    text: str
    aside: str = ""
    best: bool = False


@dataclass(frozen=True)
class ResultTable:
    """The main result of one facet. ``groups``: (title, number of columns) above ``header``; the first two
    columns of a row are ratio and variant, and ``starts`` marks the rows where the ratio changes, or the mask
    where repairs are compared. ``scores``: titles of the groups that say how good a model is.
    """

    facet: str
    groups: tuple[tuple[str, int], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    starts: tuple[bool, ...]
    scores: tuple[str, ...] = ()

    @property
    def titles(self) -> tuple[str, ...]:
        """The header where it stands alone: with the group's title before each name, but for perplexities."""
        above = [title for title, count in self.groups for _ in range(count)]
        return tuple(
            name if title in ("", PERPLEXITY) else f"{title}: {name}"
            for title, name in zip(above, self.header, strict=True)
        )


def results_csv(study_folder: Path | str) -> str:
    """results.csv: a row per trial by number; floats as their shortest exact text; what depends on time and
    place (:func:`prunelab.metric.is_clock`) in the last columns.
    """
    return frame_csv(collect(study_folder))


def frame_csv(study: Study) -> str:
    """``results_csv`` of a study that has been collected."""
    frame = study.frame.rename(columns={"log": COST.at("log")})
    known = [column for column in IDENTITY if column in frame]
    rest = sorted(str(column) for column in frame.columns if column not in IDENTITY)
    columns = [*known, *sorted(rest, key=is_clock)]
    return csv_text(frame.sort_values("number"), columns)


def csv_text(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """``columns`` of the rows as CSV; floats as their shortest exact text, gaps empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in frame[list(columns)].to_dict("records"):
        writer.writerow([_plain(row[column]) for column in columns])
    return buffer.getvalue()


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def result_tables(study: Study) -> list[ResultTable]:
    """The main table of each facet: perplexities and accuracies, the best of each ratio marked, ratios, errors."""
    return [_result_table(study, facet) for facet in study.facets]


@dataclass(frozen=True)
class _Column:
    """A column of the main table: its numbers' name, their metric, the group it stands in and its own word there.

    ``marked``: the best of each ratio stands out; ``against``: the change from the dense model stands below.
    """

    name: str
    metric: Metric
    group: str
    word: str
    marked: bool = False
    against: bool = False


def _columns(study: Study) -> list[_Column]:
    found = [_Column(PPL.at(c), PPL, PERPLEXITY, c, marked=True, against=True) for c in study.corpora]
    if len(found) > 1:
        found.append(_Column(MEAN_PPL.name, MEAN_PPL, PERPLEXITY, "mean", marked=True, against=True))
    tasks = [ACC.at(task) for task in study.tasks]
    tasks += [MEAN_ACC] if len(tasks) > 1 else []
    found += [_Column(name, ACC, ACCURACY, ACC.rest(name), marked=True) for name in tasks]
    for own in study.rows.values():
        title = f"{own.title} ({own.unit})" if own.unit else own.title
        found += [_Column(own.at(c), own, title, c, marked=True) for c in own.found(study.frame)]
    found += [_Column(name, RATIO, REMOVED, word) for name, word in _REMOVED.items() if name in study.frame]
    for name, word in _ERRORS.items():
        if study.frame.get(name, pd.Series(dtype=float)).notna().any():
            found.append(_Column(name, MEAN_OVERFIT if name == MEAN_OVERFIT.name else ERROR, ERRORS, word))
    return found


def _result_table(study: Study, facet: str) -> ResultTable:
    columns = _columns(study)
    frame = study.frame[study.frame["facet"] == facet]
    cells = by_cell(frame, [column.name for column in columns])
    planned = frame[["facet", "variant", "ratio"]].drop_duplicates()
    planned = planned.assign(ratio=pd.to_numeric(planned["ratio"], errors="coerce"))
    keys = ["facet", "variant", "ratio"]
    merged = planned.merge(cells, on=keys, how="outer") if planned["ratio"].notna().all() else cells
    order = {variant: index for index, variant in enumerate(study.variants)}
    merged = merged.assign(_order=merged["variant"].map(order)).sort_values(["ratio", "_order"])
    dense = {column.name: _dense(frame, column.name) for column in columns if column.marked}
    rows, starts = list[tuple[Cell, ...]](), list[bool]()
    if any(map(math.isfinite, dense.values())):
        told = [Cell(c.metric.text(dense[c.name]) if c.marked else "") for c in columns]
        rows, starts = [(Cell("0"), Cell("dense"), *told)], [True]
    masks = _masks(frame)
    for _, group in merged.groupby("ratio", dropna=False, sort=True):
        last_mask = None
        best = {
            c.name: c.metric.best(_number(value) for value in group.get(c.name, ()))
            for c in columns
            if c.marked
        }
        for place, row in enumerate(group.to_dict("records")):
            made = [Cell(f"{row['ratio']:.4g}"), Cell(str(row["variant"]), _why(frame, row))]
            for column in columns:
                cell = cell_of(row, column.name, column.metric.text)
                if column.against:
                    change = _change(_number(row.get(column.name)) / dense[column.name])
                    cell = replace(cell, aside=" · ".join(word for word in (cell.aside, change) if word))
                marks = best.get(column.name)
                made.append(replace(cell, best=bool(marks) and marks[place]))
            rows.append(tuple(made))
            mask = masks.get(str(row["variant"]))
            starts.append(place == 0 or mask != last_mask)
            last_mask = mask
    groups = [("", 2), *((title, len(list(own))) for title, own in groupby(columns, lambda c: c.group))]
    header = ("ratio", "method", *(column.word for column in columns))
    scores = tuple(dict.fromkeys(column.group for column in columns if column.marked))
    return ResultTable(facet, tuple(groups), header, tuple(rows), tuple(starts), scores)


def _masks(frame: pd.DataFrame) -> dict[str, str]:
    """The mask of each variant where repairs are compared, else nothing."""
    several = frame["repair"].nunique() > 1
    return dict(zip(frame["variant"], chosen(frame), strict=True)) if several else {}


def _dense(frame: pd.DataFrame, name: str) -> float:
    """The dense model's perplexity on a corpus, their geometric mean, or an accuracy."""
    if name == MEAN_PPL.name:
        logs = [
            math.log(_dense(frame, PPL.at(corpus)))
            for corpus in PPL.found(frame.columns)
            if of_dense(PPL.at(corpus)) in frame
        ]
        return math.exp(sum(logs) / len(logs)) if logs else math.nan
    values = frame.get(of_dense(name), pd.Series(dtype=float)).dropna()
    return float(values.iloc[0]) if len(values) else math.nan


def _why(frame: pd.DataFrame, row: dict[str, Any]) -> str:
    """Say how many seeds stand behind a row and why others are missing."""
    trials = frame[frame["variant"] == row["variant"]]
    if trials["ratio"].notna().all():
        trials = trials[trials["ratio"].astype(float) == row["ratio"]]
    missing = trials[trials["status"] != DONE]
    done = len(trials) - len(missing)
    words = [f"{done} of {len(trials)} seeds"] if missing.shape[0] and done else []
    words += [f"{done} seeds"] if done > 1 and missing.empty else []
    return "; ".join([*words, *dict.fromkeys(missing["reason"])])


def _change(factor: float) -> str:
    """What a factor changes: +0.02%, +6.7%, +314%, ×12; nothing where it is not finite."""
    if not factor < 10:
        return f"×{factor:,.0f}" if math.isfinite(factor) else ""
    change = 100 * (factor - 1)
    return (
        f"{change:+.2f}%"
        if abs(change) < 1
        else f"{change:+.1f}%"
        if abs(change) < 100
        else f"{change:+.0f}%"
    )


def cell_of(row: dict[str, Any], name: str, write: Callable[[float], str]) -> Cell:
    """The mean as ``write`` says it, and the spread over seeds as an aside."""
    value, spread = _number(row.get(name)), _number(row.get(name + SPREAD))
    return Cell(write(value), f"± {write(spread)}" if math.isfinite(spread) and math.isfinite(value) else "")


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def markdown_table(table: ResultTable) -> str:
    """A result table in Markdown; the best of each ratio is bold."""
    lines = ["| " + " | ".join(_escape(word) for word in table.titles) + " |"]
    lines.append(
        "|" + "|".join("---" if place == 1 else "---:" for place, _ in enumerate(table.header)) + "|"
    )
    for row in table.rows:
        texts = []
        for place, cell in enumerate(row):
            spread = f" {cell.aside.split(' · ')[0]}" if cell.aside.startswith("±") else ""
            text = f"**{cell.text}**{spread}" if cell.best else _escape(cell.text) + spread
            texts.append(f"{text} ({_escape(cell.aside)})" if place == 1 and cell.aside else text)
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Text that Markdown, and the HTML inside Markdown, takes literally."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    for mark in "\\`*_[]|":
        text = text.replace(mark, "\\" + mark)
    return text


escape_markdown = _escape
