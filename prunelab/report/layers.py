"""Figures of the inside: error over blocks, what each linear lost, and what the trials cost."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from prunelab.metric import COST, RECONSTRUCTION
from prunelab.plan.kind import CALIBRATE
from prunelab.report.aggregate import at_ratio
from prunelab.report.collect import Study
from prunelab.report.curves import fitted_name
from prunelab.report.derive import chosen, distinct, fitted_rows, held_out_rows
from prunelab.report.figure import COLOURS, GREY, WIDTH, empty, literal, looks, panels, short
from prunelab.report.label import brief

PER_ROW = 4
_NAME = 46  # characters of a variant beside its bar


def over_blocks(study: Study, ratio: float) -> Figure:
    """Error after each block at ``ratio``: fitted text solid, held-out dashed with its corpora's range."""
    lines, columns = _shape(len(study.variants))
    handles = [
        Line2D([], [], color=GREY, marker="o", label=fitted_name(study)),
        Line2D([], [], color=GREY, linestyle=(0, (4, 2)), label="held-out text, mean"),
        Patch(color=GREY, alpha=0.25, label="range of held-out corpora"),
    ]
    rows, groups = len(study.facets) * lines, [("", handles)]
    figure, grid = panels(rows, columns, 2.1, groups=groups, gap_x=0.25, gap_y=0.55, sharex=True, sharey=True)
    trials = at_ratio(study.frame, ratio)[["number", "facet", "variant"]]
    blocks = study.blocks.merge(trials, on="number")
    for place, axes in enumerate(grid.flat):
        facet, index = divmod(place, lines * columns)
        if index >= len(study.variants):
            axes.set_axis_off()
            continue
        name, variant = study.facets[facet], study.variants[index]
        own = blocks[(blocks["facet"] == name) & (blocks["variant"] == variant)]
        _block_panel(axes, own, index)
        axes.set_title(_title(study, variant, name, columns))
        _block_label(axes, place, grid, lines, len(study.variants))
        if place % columns == 0:
            axes.set_ylabel("relative error")
    grid[0, 0].set_ylim(bottom=0)  # at the end: a fixed limit stops the shared axes from growing
    return figure


def _shape(panels: int) -> tuple[int, int]:
    """Lines and columns of a facet's panels: five stand three and two, not four and one."""
    lines = max(1, -(-panels // PER_ROW))
    return lines, -(-panels // lines)


def _title(study: Study, variant: str, facet: str, columns: int) -> str:
    """What a panel shows, cut to what fits over it."""
    name = f"{variant}, {brief(study.facets)[facet]}" if len(study.facets) > 1 else variant
    return short(name, 104 // columns)


def _block_label(axes: Axes, place: int, grid: np.ndarray, lines: int, variants: int) -> None:
    """Name the x axis under the last panel of each column; with its ticks where the panel below is blank."""
    below = place + grid.shape[1]
    if below >= grid.size:
        axes.set_xlabel("block")
    elif below % (lines * grid.shape[1]) >= variants:
        axes.set_xlabel("block")
        axes.tick_params(labelbottom=True)


def _block_panel(axes: Axes, own: pd.DataFrame, index: int) -> None:
    if own["error"].dropna().empty:
        return empty(axes, "not finished")
    near = fitted_rows(own).groupby("block")["error"].mean().sort_index()
    rows = held_out_rows(own).groupby(["stream", "block"])["error"].mean()
    held_out = rows.unstack("stream").sort_index() if len(rows) else pd.DataFrame(index=near.index)
    colour, marker = looks(index)["color"], looks(index)["marker"]
    if held_out.shape[1] > 1:
        axes.fill_between(
            held_out.index, held_out.min(axis=1), held_out.max(axis=1), color=colour, alpha=0.15, linewidth=0
        )
    if held_out.shape[1]:
        axes.plot(held_out.index, held_out.mean(axis=1), color=colour, linestyle=(0, (4, 2)))
    if len(near):
        axes.plot(near.index, near, color=colour, marker=marker, markevery=max(1, len(near) // 8))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def lost(study: Study, ratio: float) -> Figure:
    """Removed fraction of every linear (rows) in every block (columns) at ``ratio``, a panel per mask: repairs
    leave it as it is.
    """
    trials = at_ratio(study.frame.assign(mask=chosen(study.frame)), ratio)[["number", "facet", "mask"]]
    sites = study.sites.merge(trials, on="number")
    masks = distinct(chosen(study.frame))
    pairs = [(f, v) for f in study.facets for v in masks]
    lines, columns = _shape(len(masks))
    paths = list(dict.fromkeys(sites["path"]))
    height = 0.24 * max(3, len(paths))
    figure, grid = panels(
        len(study.facets) * lines,
        columns,
        height,
        left=1.05,
        right=0.95,
        gap_x=0.2,
        gap_y=0.5,
        sharex=True,
        sharey=True,
    )
    image = None
    for place, axes in enumerate(grid.flat):
        facet, index = divmod(place, lines * columns)
        if index >= len(masks):
            axes.set_axis_off()
            continue
        name, mask = pairs[facet * len(masks) + index]
        own = sites[(sites["facet"] == name) & (sites["mask"] == mask)]
        axes.set_title(_title(study, mask, name, columns))
        image = _lost_panel(axes, own, paths) or image
        _block_label(axes, place, grid, lines, len(masks))
    if image is not None:
        high = figure.get_figheight()
        place = figure.add_axes((1 - 0.75 / WIDTH, 0.6 / high, 0.14 / WIDTH, min(2.4, high - 0.94) / high))
        bar = figure.colorbar(image, cax=place)
        bar.set_label("removed fraction")
        bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _lost_panel(axes: Axes, own: pd.DataFrame, paths: list[str]):
    if own.empty:
        empty(axes, "not finished")
        return None
    sums = own.groupby(["path", "block"])[["removed", "total"]].sum()
    share = (sums["removed"] / sums["total"]).unstack("block").reindex(paths).sort_index(axis=1)
    values = share.to_numpy(dtype=float)
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    axes.set_yticks(range(len(paths)), [literal(path.rsplit(".", 1)[-1]) for path in paths])
    step = max(1, -(-share.shape[1] // 8))
    axes.set_xticks(range(0, share.shape[1], step), [f"{block:g}" for block in share.columns[::step]])
    if values.shape[1] <= 6:  # wide enough for the numbers themselves
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value > 0.6 else "#33414f"
            if np.isfinite(value):
                axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=8, color=colour)
    return image


def cost(study: Study) -> Figure:
    """Seconds by stage and the largest memory peak, means over the trials of each variant."""
    names = study.variants
    kinds = list(dict.fromkeys(study.stages["kind"]))
    left = 0.35 + 0.078 * max(len(short(name, _NAME)) for name in names)
    handles = [Patch(color=COLOURS[i % len(COLOURS)], label=literal(kind)) for i, kind in enumerate(kinds)]
    high, groups = 0.2 + 0.32 * len(names), [("", handles)]
    figure, grid = panels(1, 2, high, groups=groups, left=left, gap_x=0.3, sharey=True)
    seconds, memory = grid[0]
    start = np.zeros(len(names))
    for index, kind in enumerate(kinds):
        values = _seconds(study, kind).to_numpy()
        seconds.barh(range(len(names)), values, left=start, height=0.6, color=COLOURS[index % len(COLOURS)])
        start = start + values
    every = [column for kind in kinds for column in _columns(study, kind, "peak_gib")]
    peaks = pd.concat([_mean(study, column) for column in every], axis=1).max(axis=1)
    memory.barh(range(len(names)), peaks.fillna(0), height=0.6, color=GREY)
    for axes, values, unit in ((seconds, start, "s"), (memory, peaks.to_numpy(), "GiB")):
        for row, value in enumerate(values):
            text = f" {value:.3g} {unit}" if np.isfinite(value) and value < 1000 else f" {value:,.0f} {unit}"
            axes.text(value if np.isfinite(value) else 0, row, text, va="center", fontsize=9, color=GREY)
        axes.margins(x=0.2)
        axes.grid(axis="y", visible=False)
    seconds.set_yticks(range(len(names)), [short(name, _NAME) for name in names])
    seconds.invert_yaxis()
    seconds.set_xlabel("seconds of its own stages, mean of trials")
    memory.set_xlabel("largest peak memory of a stage (GiB), mean of trials")
    return figure


def _seconds(study: Study, kind: str) -> pd.Series:
    """Seconds of the stages of a kind by variant."""
    own = _columns(study, kind, "seconds")
    return sum((_mean(study, column).fillna(0) for column in own), pd.Series(0.0, index=study.variants))


def _columns(study: Study, kind: str, value: str) -> list[str]:
    """Columns of a cost of a kind of stage; the text that repairs fit to is calibration text too."""
    own = [COST.at(f"{kind}/{value}")]
    if kind == CALIBRATE:
        columns = [str(column) for column in study.frame.columns]
        own += [c for c in columns if c.startswith(COST.at(RECONSTRUCTION)) and c.endswith(f"/{value}")]
    return own


def _mean(study: Study, column: str) -> pd.Series:
    if column not in study.frame:
        return pd.Series(np.nan, index=study.variants)
    values = pd.to_numeric(study.frame[column], errors="coerce")
    return values.groupby(study.frame["variant"]).mean().reindex(study.variants)
