"""Rows to text: results.csv, the main table as cells, and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from prunelab.report.aggregate import SPREAD, best, by_cell
from prunelab.report.collect import DONE, Study, collect
from prunelab.report.derive import chosen

IDENTITY = ("number", "name", "status", "reason", "model", "pattern", "ratio", "allocation", "method")
IDENTITY += ("reconstruction", "reconstruction_data", "calibration", "n_samples", "seq_len", "seed")
IDENTITY += ("facet", "variant", "mask", "size", "repair", "data", "key")
RATIOS = {"ratio/weights": "weights", "ratio/parameters": "parameters", "ratio/units": "units"}
ERRORS = {  # on the mask's tokens, on a repair's own, on held-out text, and held-out over what was fitted
    "error/calibration": "calibration",
    "error/reconstruction": "own text",
    "mean/held_out": "held-out",
    "mean/overfit": "over-fitting",
}


@dataclass(frozen=True)
class Cell:
    """One entry of a table: ``text``, an aside in small print, and whether it is the best of its group."""

    text: str
    aside: str = ""
    best: bool = False


PERPLEXITY, ACCURACY = "perplexity", "accuracy"


@dataclass(frozen=True)
class ResultTable:
    """The main result of one facet. ``groups``: (title, number of columns) above ``header``; the first two
    columns of a row are ratio and variant, and ``starts`` marks the rows where the ratio changes, or the mask
    where repairs are compared.
    """

    facet: str
    groups: tuple[tuple[str, int], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    starts: tuple[bool, ...]

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
    place in columns that start with ``cost/``, last.
    """
    return frame_csv(collect(study_folder))


def frame_csv(study: Study) -> str:
    """``results_csv`` of a study that has been collected."""
    frame = study.frame.rename(columns={"log": "cost/log"})
    known = [column for column in IDENTITY if column in frame]
    rest = sorted(str(column) for column in frame.columns if column not in IDENTITY)
    columns = [*known, *sorted(rest, key=lambda column: column.startswith("cost/"))]
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


def _result_table(study: Study, facet: str) -> ResultTable:
    ppl = [f"ppl/{corpus}" for corpus in study.corpora]
    several = len(ppl) > 1
    tested = [*ppl, "mean/ppl"] if several else ppl
    scored = [f"acc/{task}" for task in study.tasks]
    scored += ["acc/mean"] if len(scored) > 1 else []
    ratios = [name for name in RATIOS if name in study.frame]
    errors = [name for name in ERRORS if study.frame.get(name, pd.Series(dtype=float)).notna().any()]
    frame = study.frame[study.frame["facet"] == facet]
    cells = by_cell(frame, [*tested, *scored, *ratios, *errors])
    planned = frame[["facet", "variant", "ratio"]].drop_duplicates()
    planned = planned.assign(ratio=pd.to_numeric(planned["ratio"], errors="coerce"))
    keys = ["facet", "variant", "ratio"]
    merged = planned.merge(cells, on=keys, how="outer") if planned["ratio"].notna().all() else cells
    order = {variant: index for index, variant in enumerate(study.variants)}
    merged = merged.assign(_order=merged["variant"].map(order)).sort_values(["ratio", "_order"])
    dense = {name: _dense(frame, name) for name in [*tested, *scored]}
    rows = (
        [_dense_row(dense, tested, scored, len(ratios) + len(errors))]
        if any(map(math.isfinite, dense.values()))
        else []
    )
    starts = [True] * len(rows)
    masks = _masks(frame)
    for _, group in merged.groupby("ratio", dropna=False, sort=True):
        last_mask = None
        marks = {name: best([_number(value) for value in group.get(name, [])]) for name in tested}
        marks |= {  # per cent, and higher is better
            name: best([-100 * _number(value) for value in group.get(name, [])], 1) for name in scored
        }
        for place, row in enumerate(group.to_dict("records")):
            first = [Cell(f"{row['ratio']:.4g}"), Cell(str(row["variant"]), _why(frame, row))]
            middle = [_ppl(row, name, dense[name], marks[name], place) for name in tested]
            for name in scored:
                cell = cell_of(row, name, accuracy)
                middle.append(Cell(cell.text, cell.aside, bool(marks[name]) and marks[name][place]))
            last = [Cell(_share(row.get(name))) for name in ratios]
            rows.append(
                (
                    *first,
                    *middle,
                    *last,
                    *(
                        cell_of(row, name, number if name == "mean/overfit" else error_text)
                        for name in errors
                    ),
                )
            )
            mask = masks.get(str(row["variant"]))
            starts.append(place == 0 or mask != last_mask)
            last_mask = mask
    names = [*study.corpora, *(["mean"] if several else [])]
    header = [
        "ratio",
        "method",
        *names,
        *(name.removeprefix("acc/") for name in scored),
        *(RATIOS[name] for name in ratios),
        *(ERRORS[name] for name in errors),
    ]
    groups = [("", 2), (PERPLEXITY, len(tested)), (ACCURACY, len(scored))]
    groups += [("removed", len(ratios)), ("error", len(errors))]
    shown = tuple(group for group in groups if group[1])
    return ResultTable(facet, shown, tuple(header), tuple(map(tuple, rows)), tuple(starts))


def _masks(frame: pd.DataFrame) -> dict[str, str]:
    """The mask of each variant where repairs are compared, else nothing."""
    several = frame["repair"].nunique() > 1
    return dict(zip(frame["variant"], chosen(frame), strict=True)) if several else {}


def _dense(frame: pd.DataFrame, name: str) -> float:
    """The dense model's perplexity on a corpus, their geometric mean, or an accuracy."""
    if name == "mean/ppl":
        logs = [
            math.log(_dense(frame, f"ppl/{c[10:]}"))
            for c in frame.columns
            if c.startswith("dense/ppl/") and c[6:] in frame
        ]
        return math.exp(sum(logs) / len(logs)) if logs else math.nan
    values = frame.get(f"dense/{name}", pd.Series(dtype=float)).dropna()
    return float(values.iloc[0]) if len(values) else math.nan


def _dense_row(
    dense: dict[str, float], tested: Sequence[str], scored: Sequence[str], empty: int
) -> tuple[Cell, ...]:
    texts = [number(dense[name]) for name in tested] + [accuracy(dense[name]) for name in scored]
    return (Cell("0"), Cell("dense"), *map(Cell, texts), *[Cell("")] * empty)


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


def _ppl(row: dict[str, Any], name: str, dense: float, marks: list[bool], place: int) -> Cell:
    cell, factor = cell_of(row, name, number), _number(row.get(name)) / dense
    change = percent(factor) if factor < 10 else f"×{factor:,.0f}" if math.isfinite(factor) else ""
    aside = " · ".join(word for word in (cell.aside, change) if word)
    return Cell(cell.text, aside, bool(marks) and marks[place])


def percent(factor: float) -> str:
    """A factor as a change: +0.02%, +6.7%, +314%."""
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


def error_text(value: float) -> str:
    """An error as people read it: 0.0963, 0.00123, — for none."""
    if not math.isfinite(value):
        return "—"
    return f"{value:.4f}" if value >= 0.01 or not value else f"{value:.3g}"


def accuracy(value: float) -> str:
    """An accuracy in per cent: 41.3%, — for none."""
    return f"{100 * value:.1f}%" if math.isfinite(value) else "—"


def _share(value: Any) -> str:
    value = _number(value)
    return f"{100 * value:.2f}%" if math.isfinite(value) else "—"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def number(value: float) -> str:
    """A perplexity or a duration as people read it: 21.40, 1,234, 5.6e+07, ∞, — for none."""
    if math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.1e}"


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
