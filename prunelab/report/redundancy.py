"""Redundancy spectra drawn: sorted values of units with their most redundant partner, a line for each block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunelab.report.aggregate import at_ratio
from prunelab.report.collect import Study
from prunelab.report.figure import panels, percent_axis, short

RANKED = "spectrum"  # the table
MOST_LINES = 12  # in a legend; of more blocks every n-th is named


def has_ranked(study: Study, ratio: float) -> bool:
    """Say whether a trial at ``ratio`` knows its units' values with their most redundant partner."""
    return len(_rows(study, ratio)) > 0


def _rows(study: Study, ratio: float) -> pd.DataFrame:
    table = study.units.get(RANKED, pd.DataFrame())
    if not {"share", "nmi"} <= set(table.columns):
        return pd.DataFrame()
    trials = at_ratio(study.frame, ratio)[["number", "facet", "variant"]]
    rows = table[table["shot"] == 1].merge(trials, on="number")  # later shots see what the first left
    return rows.astype({"share": float, "nmi": float, "block": int})


def ranked(study: Study, ratio: float) -> Figure:
    """Values over the share of units that have as much: a panel for each kind, facet and variant, seeds as their mean."""
    rows = _rows(study, ratio)
    blocks = sorted(rows["block"].unique())
    named = blocks[:: -(-len(blocks) // MOST_LINES)]
    handles: list[Any] = [
        Line2D([], [], color=_colour(block, blocks), label=f"block {block}") for block in named
    ]

    def draw(axes: Axes, own: pd.DataFrame, variant: str) -> None:
        _panel(axes, own, blocks)

    return kind_panels(study, rows, handles, draw, right=0.3)


def kind_panels(
    study: Study, rows: pd.DataFrame, handles: list[Any], draw: Callable[[Axes, pd.DataFrame, str], None],
    **gaps: float,
) -> Figure:  # fmt: skip
    """A panel for each facet, variant and kind of ``rows``, three to a line, by ``draw(axes, own rows, variant)``; what they
    show is the value of a unit with its nearest partner. ``gaps``: see :func:`prunelab.report.figure.panels`."""
    groups = list(rows.groupby(["facet", "variant", "kind"], sort=False))
    columns = min(3, len(groups))
    figure, grid = panels(
        -(-len(groups) // columns), columns, 2.3, groups=[("", handles)], gap_y=0.8, sharey=True, **gaps
    )
    for axes, item in zip(grid.flat, [*groups, *[None] * (grid.size - len(groups))], strict=True):
        if item is None:
            axes.set_axis_off()
            continue
        (facet, variant, kind), own = item
        words = [str(variant), *([str(facet)] if len(study.facets) > 1 else []), str(kind)]
        axes.set_title(short(", ".join(words), 40))
        draw(axes, own, str(variant))
    for axes in grid[:, 0]:
        axes.set_ylabel("nmi with the nearest partner")
    grid[0, 0].set_ylim(bottom=0)
    return figure


def _panel(axes: Axes, own: pd.DataFrame, blocks: Sequence[int]) -> None:
    for block, lines in own.groupby("block"):
        means = lines.groupby("share")["nmi"].mean()
        axes.plot(means.index, means, color=_colour(int(str(block)), blocks), linewidth=1.4)
    axes.set_xlim(0, 1)
    axes.set_xlabel("units that have as much")
    percent_axis(axes)


def _colour(block: int, blocks: Sequence[int]) -> Any:
    """From dark for the first block to light for the last."""
    return colormaps["viridis"](0.9 * list(blocks).index(block) / max(1, len(blocks) - 1))
