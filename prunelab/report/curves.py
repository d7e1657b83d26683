"""Figures of trials as points and lines: tradeoff, perplexity over sparsity, over-fitting index."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunelab.report.aggregate import SPREAD, by_cell, pareto
from prunelab.report.collect import Study
from prunelab.report.figure import (
    GREY,
    INK,
    empty,
    legend,
    literal,
    log_axis,
    looks,
    panels,
    percent_axis,
    short,
)

FRONT = {
    "marker": "o",
    "markersize": 13,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
    "linestyle": "none",
}
DENSE = {"color": GREY, "linewidth": 1.2, "linestyle": (0, (4, 3))}


def tradeoff(study: Study) -> Figure:
    """Mean perplexity against the error on calibration (left) and held-out text (right), a row per facet."""
    names = [short(name) for name in study.variants]
    figure, grid = panels(
        len(study.facets), 2, 3.7, names=[*names, "on the Pareto front"], gap_x=0.3, sharey="row"
    )
    cells = by_cell(study.frame, ["mean/ppl", "error/calibration", "mean/held_out"])
    for line, facet in zip(grid, study.facets, strict=True):
        part = cells[cells["facet"] == facet]
        sides = list(
            zip(line, ("error/calibration", "mean/held_out"), ("calibration", "held-out"), strict=True)
        )
        for axes, error, text in sides:
            _tradeoff_panel(axes, study, part, error, "mean/ppl")
            axes.set_title(f"calibrated on {literal(facet)}: error on {text} text")
            axes.set_xlabel(f"relative error after the last block, {text} text")
        for axes, error, _ in sides:  # after both: they share their height
            _ratio_labels(axes, study, part, error, "mean/ppl")
        line[0].set_ylabel("perplexity, mean of test corpora")
    legend(figure, names, [Line2D([], [], label="on the Pareto front", **FRONT)])
    return figure


def tradeoff_corpora(study: Study) -> Figure:
    """Perplexity of each test corpus against the error on calibration text; facets x corpora."""
    names = [short(name) for name in study.variants]
    figure, grid = panels(len(study.facets), len(study.corpora), 2.4, names=names)
    for line, facet in zip(grid, study.facets, strict=True):
        for axes, corpus in zip(line, study.corpora, strict=True):
            cells = by_cell(study.frame, [f"ppl/{corpus}", "error/calibration"])
            part = cells[cells["facet"] == facet]
            _tradeoff_panel(axes, study, part, "error/calibration", f"ppl/{corpus}", labels=False)
            axes.set_title(literal(f"{facet} → {corpus}"))
            axes.set_xlabel("error on calibration text")
        line[0].set_ylabel("perplexity")
    legend(figure, names)
    return figure


def _tradeoff_panel(
    axes: Axes, study: Study, cells: pd.DataFrame, error: str, perplexity: str, labels: bool = True
) -> None:
    if error not in cells or perplexity not in cells or cells[[error, perplexity]].dropna().empty:
        return empty(axes, "no finished trial")
    front = pareto(cells, error, perplexity)
    if labels:
        axes.plot(cells[error][front], cells[perplexity][front], zorder=1, **FRONT)
    for index, variant in enumerate(study.variants):
        own = cells[cells["variant"] == variant].sort_values("ratio")
        axes.plot(own[error], own[perplexity], **looks(index))
        axes.errorbar(
            own[error],
            own[perplexity],
            xerr=own[error + SPREAD].fillna(0),
            yerr=own[perplexity + SPREAD].fillna(0),
            fmt="none",
            ecolor=looks(index)["color"],
            elinewidth=1,
        )
    log_axis(axes)
    axes.margins(x=0.07, y=0.07)
    known = cells[error].dropna()
    if known.min() > 0 and known.max() > 8 * known.min():  # a sweep's small errors would sit on one spot
        log_axis(axes, "x")


def _ratio_labels(axes: Axes, study: Study, cells: pd.DataFrame, error: str, perplexity: str) -> None:
    """Name points by their ratio where the name lies neither on a point nor on another name."""
    known = cells[[error, perplexity]].apply(pd.to_numeric).replace([float("inf")], float("nan")).dropna()
    if known.empty or not axes.axison:
        return
    axes.autoscale_view()  # limits are lazy, and positions in pixels are needed now
    points = cells.loc[known.index].sort_values(perplexity, ascending=False)
    pixels = axes.transData.transform(points[[error, perplexity]].to_numpy(dtype=float))
    unit = axes.get_figure().dpi / 72  # pixels in a typographic point
    boxes = [(x, y, 5 * unit, 5 * unit) for x, y in pixels]
    for row, (x, y) in zip(points.to_dict("records"), pixels, strict=True):
        for dx, dy in ((15, -7), (-15, 7), (15, 7), (-15, -7), (0, -14), (0, 14)):
            box = (x + dx * unit, y + dy * unit, 8 * unit, 4.5 * unit)
            if any(abs(box[0] - a) < box[2] + w and abs(box[1] - b) < box[3] + h for a, b, w, h in boxes):
                continue
            boxes.append(box)
            axes.annotate(
                f"{row['ratio']:.3g}",
                (row[error], row[perplexity]),
                (dx, dy),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=8.5,
                color=looks(study.variants.index(row["variant"]))["color"],
            )
            break


def over_sparsity(study: Study) -> Figure:
    """Perplexity over the removed fraction, facets x corpora, the dense model as a dashed line."""
    names = [short(name) for name in study.variants]
    figure, grid = panels(
        len(study.facets), len(study.corpora), 2.4, names=[*names, "dense model"], gap_y=0.6, sharex=True
    )
    for line, facet in zip(grid, study.facets, strict=True):
        for axes, corpus in zip(line, study.corpora, strict=True):
            cells = by_cell(study.frame, [f"ppl/{corpus}"])
            _ratio_panel(axes, study, cells[cells["facet"] == facet], f"ppl/{corpus}")
            dense = _dense(study, facet, corpus)
            if dense is not None and axes.axison:
                axes.axhline(dense, **DENSE)
            if axes.axison:
                log_axis(axes)
            axes.set_title(literal(f"{facet} → {corpus}"))
            axes.set_xlabel("removed fraction" if facet == study.facets[-1] else "")
        line[0].set_ylabel("perplexity")
    legend(figure, names, [Line2D([], [], label="dense model", **DENSE)])
    return figure


def overfit(study: Study) -> Figure:
    """Held-out error over calibration error by ratio, facets x held-out corpora; 1 means no over-fitting."""
    names = [short(name) for name in study.variants]
    figure, grid = panels(
        len(study.facets),
        len(study.held_out),
        2.3,
        names=[*names, "no over-fitting"],
        gap_x=0.3,
        gap_y=0.6,
        sharex=True,
        sharey="row",
    )
    frame = study.frame.copy()
    calibration = pd.to_numeric(frame["error/calibration"], errors="coerce")
    for corpus in study.held_out:
        frame[f"overfit/{corpus}"] = frame[f"error/held_out/{corpus}"] / calibration.where(calibration > 0)
    for line, facet in zip(grid, study.facets, strict=True):
        for axes, corpus in zip(line, study.held_out, strict=True):
            cells = by_cell(frame, [f"overfit/{corpus}"])
            _ratio_panel(axes, study, cells[cells["facet"] == facet], f"overfit/{corpus}")
            if axes.axison:
                axes.axhline(1, **DENSE)
            axes.set_title(literal(f"{facet} → {corpus}"))
            axes.set_xlabel("removed fraction" if facet == study.facets[-1] else "")
        line[0].set_ylabel("error: held-out ÷ calibration")
    legend(figure, names, [Line2D([], [], label="no over-fitting", **DENSE)])
    return figure


def _ratio_panel(axes: Axes, study: Study, cells: pd.DataFrame, column: str) -> None:
    if column not in cells or cells[column].dropna().empty:
        return empty(axes, "no finished trial")
    for index, variant in enumerate(study.variants):
        own = cells[cells["variant"] == variant].sort_values("ratio")
        axes.plot(own["ratio"], own[column], **looks(index))
        if own[column + SPREAD].notna().any():
            low, high = own[column] - own[column + SPREAD], own[column] + own[column + SPREAD]
            axes.fill_between(own["ratio"], low, high, color=looks(index)["color"], alpha=0.15, linewidth=0)
    percent_axis(axes)


def _dense(study: Study, facet: str, corpus: str) -> float | None:
    column = f"dense/ppl/{corpus}"
    if column not in study.frame:
        return None
    values = study.frame[study.frame["facet"] == facet][column].dropna().astype(float)
    return float(values.iloc[0]) if len(values) else None
