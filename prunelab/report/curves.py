"""Figures of trials as points and lines: tradeoff, perplexity over sparsity, over-fitting index."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunelab.metric import (
    MEAN_COST,
    MEAN_HELD_OUT,
    MEAN_PPL,
    ON_FITTED,
    ON_OWN_TEXT,
    OVERFIT,
    PPL,
    metric_of,
)  # fmt: skip
from prunelab.report.aggregate import SPREAD, by_cell, pareto
from prunelab.report.collect import Study
from prunelab.report.derive import of_dense
from prunelab.report.figure import GREY, INK, Group, empty, literal, log_axis, panels, percent_axis, short
from prunelab.report.key import Key, Look, key_of, tracks
from prunelab.report.label import brief, in_words

FRONT = {
    "marker": "o",
    "markersize": 13,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
    "linestyle": "none",
}
DENSE = {"color": GREY, "linewidth": 1.2, "linestyle": (0, (4, 3))}


def tradeoff(study: Study, score: str = MEAN_COST.name) -> Figure:
    """What pruning costs, or ``score`` acc/mean, against the error on fitted (left) and held-out text (right), a row
    per facet.

    The cost is the mean perplexity over the dense model's, minus one, on a logarithmic axis: so the best methods can
    be told apart where others are in the thousands. Without a dense model it is the perplexity itself.
    """
    if score == MEAN_COST.name and study.frame[score].isna().all():
        score = MEAN_PPL.name
    key, circle = key_of(study), Line2D([], [], label="on the Pareto front", **FRONT)
    figure, grid = panels(
        len(study.facets), 2, 3.7, groups=_with(key, [circle]), left=1.0, gap_x=0.3, sharey="row"
    )
    cells = by_cell(study.frame, [score, ON_FITTED, MEAN_HELD_OUT.name])
    near = fitted_name(study)
    for line, facet in zip(grid, study.facets, strict=True):
        part = cells[cells["facet"] == facet]
        sides = list(zip(line, (ON_FITTED, MEAN_HELD_OUT.name), (near, "held-out text"), strict=True))
        for axes, error, text in sides:
            _tradeoff_panel(axes, key, tracks(study, key), part, error, score)
            axes.set_title(f"{literal(in_words(facet))}: error on {text}")
            axes.set_xlabel(f"relative error after the last block, {text}")
        if cells["ratio"].nunique() > 1:
            for axes, error, _ in sides:  # after both: they share their height
                _ratio_labels(axes, key, part, error, score)
        line[0].set_ylabel(title(score))
    return figure


def fitted_name(study: Study) -> str:
    """What the text that was fitted is called: a repair may have fitted other text than the mask's."""
    return "fitted text" if ON_OWN_TEXT in study.frame else "calibration text"


def title(name: str) -> str:
    """What a number is called on an axis."""
    metric = metric_of(name)
    return metric.title if metric else name


def _pair(study: Study, facet: str, corpus: str, columns: int) -> str:
    return short(f"{brief(study.facets)[facet]} → {corpus}", 104 // columns)


def _with(key: Key, extra: Sequence[Line2D]) -> list[Group]:
    """The key's legend with more handles in its last group."""
    title, handles = key.groups[-1]
    return [*key.groups[:-1], (title, [*handles, *extra])]


def tradeoff_corpora(study: Study) -> Figure:
    """Perplexity of each test corpus against the error on fitted text; facets x corpora."""
    key = key_of(study)
    figure, grid = panels(len(study.facets), len(study.corpora), 2.4, groups=key.groups)
    for line, facet in zip(grid, study.facets, strict=True):
        for axes, corpus in zip(line, study.corpora, strict=True):
            cells = by_cell(study.frame, [PPL.at(corpus), ON_FITTED])
            part = cells[cells["facet"] == facet]
            lines = tracks(study, key)
            _tradeoff_panel(axes, key, lines, part, ON_FITTED, PPL.at(corpus), front=False)
            axes.set_title(_pair(study, facet, corpus, len(line)))
            axes.set_xlabel(f"error on {fitted_name(study)}")
        line[0].set_ylabel("perplexity")
    return figure


def _tradeoff_panel(
    axes: Axes,
    key: Key,
    lines: Sequence[tuple[Sequence[str], Look]],
    cells: pd.DataFrame,
    error: str,
    score: str,
    front: bool = True,
) -> None:
    if error not in cells or score not in cells or cells[[error, score]].dropna().empty:
        return empty(axes, "no finished trial")
    metric = metric_of(score)
    higher = metric is not None and metric.better == "higher"
    if front:
        best = pareto(cells.assign(**{score: -cells[score]}) if higher else cells, error, score)
        axes.plot(cells[error][best], cells[score][best], zorder=1, **FRONT)
    if cells["ratio"].nunique() == 1:
        at = cells.set_index("variant")
        for names, look in lines:
            track = at.reindex([name for name in names if name in at.index])
            axes.plot(track[error], track[score], zorder=1.5, **look)
    for variant, look in key.looks.items():
        own = cells[cells["variant"] == variant].sort_values("ratio")
        axes.plot(own[error], own[score], **look)
        axes.errorbar(
            own[error],
            own[score],
            xerr=own[error + SPREAD].fillna(0),
            yerr=own[score + SPREAD].fillna(0),
            fmt="none",
            ecolor=look["color"],
            elinewidth=1,
        )
    if score == MEAN_COST.name and (cells[score] <= 0).any():  # a pruned model that beats the dense one
        least = cells[score].abs().replace(0, float("nan")).min()
        axes.set_yscale("symlog", linthresh=max(1e-3, float(least)))
    elif metric is None or metric.axis == "log":
        log_axis(axes)
    if score == MEAN_COST.name:
        percent_axis(axes, "y")
    axes.margins(x=0.07, y=0.07)
    known = cells[error].dropna()
    if known.min() > 0 and known.max() > 8 * known.min():  # a sweep's small errors would sit on one spot
        log_axis(axes, "x")


def _ratio_labels(axes: Axes, key: Key, cells: pd.DataFrame, error: str, perplexity: str) -> None:
    """Name points by their ratio where the name lies neither on a point, nor on a line, nor on another name."""
    known = cells[[error, perplexity]].apply(pd.to_numeric).replace([float("inf")], float("nan")).dropna()
    if known.empty or not axes.axison:
        return
    axes.autoscale_view()  # limits are lazy, and positions in pixels are needed now
    points = cells.loc[known.index].sort_values(perplexity, ascending=False)
    pixels = axes.transData.transform(points[[error, perplexity]].to_numpy(dtype=float))
    unit = axes.get_figure().dpi / 72  # pixels in a typographic point
    boxes = [(x, y, 6 * unit, 6 * unit) for x, y in pixels]
    for variant in key.looks:  # lines are straight in pixels
        own = (
            points[points["variant"] == variant]
            .sort_values("ratio")[[error, perplexity]]
            .to_numpy(dtype=float)
        )
        corners = axes.transData.transform(own) if len(own) else own
        for a, b in itertools.pairwise(corners):
            steps = max(2, int(np.hypot(*(b - a)) // (3 * unit)))
            boxes += [(x, y, unit, unit) for x, y in np.linspace(a, b, steps)]
    for row, (x, y) in zip(points.to_dict("records"), pixels, strict=True):
        for dx, dy in ((16, -8), (-16, 8), (16, 8), (-16, -8), (0, -15), (0, 15), (22, 0), (-22, 0)):
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
                color=key.looks[row["variant"]]["color"],
            )
            break


def over_sparsity(study: Study) -> Figure:
    """Perplexity over the removed fraction, facets x corpora, the dense model as a dashed line."""
    key, dashed = key_of(study), Line2D([], [], label="dense model", **DENSE)
    figure, grid = panels(
        len(study.facets), len(study.corpora), 2.4, groups=_with(key, [dashed]), gap_y=0.6, sharex=True
    )
    for line, facet in zip(grid, study.facets, strict=True):
        for axes, corpus in zip(line, study.corpora, strict=True):
            cells = by_cell(study.frame, [PPL.at(corpus)])
            _ratio_panel(axes, key, cells[cells["facet"] == facet], PPL.at(corpus))
            level = dense(study, facet, corpus)
            if level is not None and axes.axison:
                axes.axhline(level, **DENSE)
            if axes.axison:
                log_axis(axes)
            axes.set_title(_pair(study, facet, corpus, len(line)))
            axes.set_xlabel("removed fraction" if facet == study.facets[-1] else "")
        line[0].set_ylabel("perplexity")
    return figure


def overfit(study: Study) -> Figure:
    """Over-fitting index by ratio, facets x held-out corpora; 1 means no over-fitting."""
    key, dashed = key_of(study), Line2D([], [], label="no over-fitting", **DENSE)
    figure, grid = panels(
        len(study.facets),
        len(study.held_out),
        2.3,
        groups=_with(key, [dashed]),
        gap_x=0.3,
        gap_y=0.6,
        sharex=True,
        sharey="row",
    )
    for line, facet in zip(grid, study.facets, strict=True):
        for axes, corpus in zip(line, study.held_out, strict=True):
            cells = by_cell(study.frame, [OVERFIT.at(corpus)])
            _ratio_panel(axes, key, cells[cells["facet"] == facet], OVERFIT.at(corpus))
            if axes.axison:
                axes.axhline(1, **DENSE)
            axes.set_title(_pair(study, facet, corpus, len(line)))
            axes.set_xlabel("removed fraction" if facet == study.facets[-1] else "")
        line[0].set_ylabel(f"error: held-out ÷ {fitted_name(study).split()[0]}")
    return figure


def _ratio_panel(axes: Axes, key: Key, cells: pd.DataFrame, column: str) -> None:
    if column not in cells or cells[column].dropna().empty:
        return empty(axes, "no finished trial")
    for variant, look in key.looks.items():
        own = cells[cells["variant"] == variant].sort_values("removed")
        axes.plot(own["removed"], own[column], **look)
        if own[column + SPREAD].notna().any():
            low, high = own[column] - own[column + SPREAD], own[column] + own[column + SPREAD]
            axes.fill_between(own["removed"], low, high, color=look["color"], alpha=0.15, linewidth=0)
    percent_axis(axes)


def dense(study: Study, facet: str, corpus: str | None) -> float | None:
    """The dense model's perplexity on a corpus, in the trials of a facet; None: the mean of all."""
    if corpus is None:
        levels = [level for name in study.corpora if (level := dense(study, facet, name)) is not None]
        return math.exp(sum(map(math.log, levels)) / len(levels)) if levels else None
    column = of_dense(PPL.at(corpus))
    if column not in study.frame:
        return None
    values = study.frame[study.frame["facet"] == facet][column].dropna().astype(float)
    return float(values.iloc[0]) if len(values) else None
