"""Figures of repairs after pruning: errors and perplexity by repair, and what happens along the blocks.

Drawn at one ratio. Errors are those of the paper's figures (arXiv:2406.15524) relative to the dense output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from prunelab.metric import HELD_OUT_ERROR, MEAN_PPL, ON_FITTED, PPL
from prunelab.report.aggregate import SPREAD, at_ratio, by_cell
from prunelab.report.collect import Study
from prunelab.report.curves import DENSE, dense, fitted_name
from prunelab.report.derive import chosen, distinct, fitted_rows, held_out_rows
from prunelab.report.figure import Group, empty, log_axis, panels, short
from prunelab.report.key import Factors, Key, Look, key_of
from prunelab.report.label import NO_REPAIR

PER_ROW = 4


def has_repairs(study: Study) -> bool:
    """Whether any trial repairs what it prunes."""
    return any(name != NO_REPAIR for name in study.frame["repair"])


def compares_repairs(study: Study) -> bool:
    """Whether trials differ in their repair, bare masks counted."""
    return study.frame["repair"].nunique() > 1


def by_repair(study: Study, ratio: float) -> Figure:
    """Error after the last block on fitted and on each held-out text, and perplexity, over the repairs; a line for
    each mask and what was fitted to. Two rows per facet.
    """
    errors = {ON_FITTED: fitted_name(study)} | {HELD_OUT_ERROR.at(c): f"held-out {c}" for c in study.held_out}
    scores = {MEAN_PPL.name: "test, mean"} if len(study.corpora) > 1 else {}
    scores |= {PPL.at(corpus): f"test {corpus}" for corpus in study.corpora}
    columns, lines = max(len(errors), len(scores)), 2 * len(study.facets)
    factors = _masks(study)
    repairs = distinct(study.frame["repair"])
    figure, grid = panels(
        lines, columns, 1.9, groups=_legend(factors), left=0.7, gap_x=0.36, gap_y=0.42, sharex=True
    )
    cells = by_cell(study.frame, [*errors, *scores])
    cells = at_ratio(cells, ratio)
    for place, facet in enumerate(study.facets):
        part = cells[cells["facet"] == facet]
        name = f"{facet}: " if len(study.facets) > 1 else ""
        for line, measured, what in (
            (2 * place, errors, "relative error"),
            (2 * place + 1, scores, "perplexity"),
        ):
            for axes, column in zip(grid[line], [*measured, *[None] * columns], strict=False):
                if column is None:
                    axes.set_axis_off()
                    continue
                _repair_panel(axes, study, part, column, repairs, factors)
                axes.set_title(short(name + measured[column], 24))
            grid[line, 0].set_ylabel(what)
        _share_height(grid[2 * place : 2 * place + 1, : len(errors)])
        for axes, column in zip(grid[2 * place + 1], scores, strict=False):
            level = dense(study, facet, None if column == MEAN_PPL.name else PPL.rest(column))
            if level is not None and axes.axison:
                axes.axhline(level, **DENSE)
    for axes in grid[-1]:
        axes.set_xticks(range(len(repairs)), [short(name, 18) for name in repairs], rotation=35, ha="right")
    figure.subplots_adjust(bottom=1.0 / figure.get_figheight())
    return figure


def _masks(study: Study) -> Factors:
    """Colours for masks, since repairs stand on the axis here; fill and dashes for what was fitted to."""
    frame = study.frame
    return Factors((NO_REPAIR,), distinct(chosen(frame)), distinct(frame["data"]))


def _legend(factors: Factors) -> list[Group]:
    groups = factors.groups or [("", [])]
    title, handles = groups[-1]
    return [*groups[:-1], (title, [*handles, Line2D([], [], label="dense model", **DENSE)])]


def _repair_panel(
    axes: Axes, study: Study, cells: pd.DataFrame, column: str, repairs: Sequence[str], factors: Factors
) -> None:
    if column not in cells or cells[column].dropna().empty:
        return empty(axes, "no finished trial")
    labels = study.frame.assign(chosen=chosen(study.frame)).drop_duplicates("variant").set_index("variant")
    rows = cells.join(labels[["chosen", "repair", "data"]], on="variant")
    for mask in factors.masks:
        bare = rows[(rows["chosen"] == mask) & (rows["repair"] == NO_REPAIR)]
        for data in reversed(factors.others):  # the mask's own tokens on top
            own = rows[(rows["chosen"] == mask) & (rows["data"] == data) & (rows["repair"] != NO_REPAIR)]
            if own.empty and data:
                continue
            line = pd.concat([bare, own]).drop_duplicates("repair")
            line = line.set_index("repair").reindex([name for name in repairs if name in set(line["repair"])])
            at, look = [repairs.index(name) for name in line.index], factors.look(NO_REPAIR, mask, data)
            marked = [place for place, name in enumerate(line.index) if not data or name != NO_REPAIR]
            axes.plot(at, line[column], markevery=marked, **_thin(look))
            spread = line[column + SPREAD].fillna(0)
            axes.errorbar(at, line[column], yerr=spread, fmt="none", ecolor=look["color"], elinewidth=1)
    axes.set_xlim(-0.35, len(repairs) - 0.65)
    if (cells[column].dropna() > 0).all():
        log_axis(axes)


def _share_height(grid: np.ndarray) -> None:
    """One range for all panels of ``grid`` (rows, columns), so that they can be compared by eye; ticks at the left."""
    drawn = [axes for axes in grid.flat if axes.axison]
    limits = np.array([axes.get_ylim() for axes in drawn]).reshape(-1, 2)
    for axes in drawn:
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        if axes.get_yscale() == "log":
            log_axis(axes)
    for axes in grid[:, 1:].flat:
        axes.tick_params(labelleft=False)


Values = Callable[[pd.DataFrame], Any]  # rows of one variant -> a Series of values by block


def errors_over_blocks(study: Study, ratio: float) -> Figure:
    """Error after each block at ``ratio``: on fitted text (upper) and held-out text (lower), a panel per mask."""
    near = fitted_name(study)
    rows: list[tuple[str, Values]] = [
        (f"error, {near}", lambda own: fitted_rows(own).groupby("block")["error"].mean()),
        ("error, held-out text", lambda own: held_out_rows(own).groupby("block")["error"].mean()),
    ]
    return _over_blocks(study, study.blocks, ratio, rows if study.held_out else rows[:1], logarithmic=True)


def overfit_over_blocks(study: Study, ratio: float) -> Figure:
    """Over-fitting index after each block at ``ratio``: mean held-out error over error on fitted text."""

    def index(own: pd.DataFrame) -> Any:
        return held_out_rows(own).groupby("block")["overfit"].mean()

    label = f"error: held-out ÷ {fitted_name(study).split()[0]}"
    return _over_blocks(study, study.blocks, ratio, [(label, index)], level=1.0)


def gain_over_blocks(study: Study, ratio: float) -> Figure:
    """What is left of a block's error by its repair, on the text it was fitted to; bare masks have none."""

    def left(own: pd.DataFrame) -> Any:
        factor = own["error"] / own["error_before"].where(own["error_before"] > 0)
        return factor.groupby(own["block"]).mean()

    return _over_blocks(study, study.repairs, ratio, [("error: after ÷ before", left)], level=1.0)


def _over_blocks(
    study: Study,
    table: pd.DataFrame,
    ratio: float,
    rows: Sequence[tuple[str, Values]],
    *,
    logarithmic: bool = False,
    level: float | None = None,
) -> Figure:
    """Lines over blocks: a panel per facet and mask (all variants in one where repairs are not compared), as many
    rows of panels as ``rows``, wrapped after four; each of ``rows`` has one range.
    """
    key = key_of(study)
    frame = at_ratio(study.frame.assign(chosen=chosen(study.frame)), ratio)
    bands = _bands(study.facets, distinct(frame["chosen"]) if key.factors is not None else ())
    columns = max(map(len, bands))
    figure, grid = panels(
        len(bands) * len(rows), columns, 2.2, groups=key.groups, gap_x=0.25, gap_y=0.5, sharex=True
    )
    data = table.merge(frame[["number", "facet", "variant", "chosen"]], on="number")
    for (number, band), offset in itertools.product(enumerate(bands), range(len(rows))):
        line, (label, values) = grid[number * len(rows) + offset], rows[offset]
        for axes in line[len(band) :]:
            axes.set_axis_off()
        line[0].set_ylabel(label)
        for column, (axes, (facet, mask)) in enumerate(zip(line, band, strict=False)):
            here = data[(data["facet"] == facet) & ((data["chosen"] == mask) | (mask == ""))]
            names = [name for name in (mask, facet if len(study.facets) > 1 or not mask else "") if name]
            _block_lines(axes, key, here, values, logarithmic=logarithmic, level=level)
            axes.set_title("" if offset else short(", ".join(names), 28))
            below = bands[number + 1] if number + 1 < len(bands) else []
            if offset + 1 == len(rows) and column >= len(below):  # the last panel of its column
                axes.set_xlabel("block")
                axes.tick_params(labelbottom=True)
    for offset in range(len(rows)):
        _share_height(grid[offset :: len(rows)])
    return figure


def _bands(facets: Sequence[str], masks: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Rows of panels, four at most in each: masks of a facet, or facets where masks share a panel."""
    lines = [[(facet, mask) for mask in masks] for facet in facets]
    if not masks:
        lines = [[(facet, "") for facet in facets]]
    width = len(lines[0])
    each = -(-width // -(-width // PER_ROW))  # six panels stand three and three, not four and two
    return [line[start : start + each] for line in lines for start in range(0, width, each)]


def _block_lines(
    axes: Axes, key: Key, rows: pd.DataFrame, values: Values, *, logarithmic: bool, level: float | None
) -> None:
    drawn = False
    for variant, look in key.looks.items():
        line = values(rows[rows["variant"] == variant]).dropna().sort_index()
        if len(line):
            drawn = True
            axes.plot(line.index, line, markevery=max(1, len(line) // 8), **_thin(look))
    if not drawn:
        return empty(axes, "not finished")
    if level is not None:
        axes.axhline(level, **DENSE)
    if logarithmic:
        log_axis(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return None


def _thin(look: Look) -> Look:
    return look | {"linewidth": 1.4, "markersize": 5}
