"""Looks shared by all figures: Okabe-Ito colours with markers and line styles, grids of panels, PNG bytes.

Matplotlib's Agg canvas is used without pyplot: no global state, no display, no backend choice.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe & Ito's palette without yellow, which vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#3A3A3A")
MARKERS = "os^DvPX*<>"
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
INK, GREY, GRID = "#1f2933", "#6b7785", "#e4e8ec"
WIDTH = 11.5  # inches; 100 of the page's pixels each
DPI = 140
LINE = 0.26  # inches of a legend's line
Group = tuple[str, Sequence[Any]]  # what a part of a legend is about (may be empty), and its handles
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # fixed: finding a free height measures every tick again
    "axes.labelsize": 10,
    "axes.edgecolor": "#aab4be",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "figure.facecolor": "white",
}


def looks(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the ``index``-th variant; the first 70 differ in two of the three."""
    dash = DASHES[(index // len(COLOURS)) % len(DASHES)]
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": dash,
    }


def panels(
    rows: int,
    columns: int,
    row_height: float,
    *,
    groups: Sequence[Group] = (),
    left: float = 0.75,
    right: float = 0.15,
    gap_x: float = 0.68,
    gap_y: float = 0.85,
    **share: Any,
) -> tuple[Figure, Any]:
    """A figure of the page's width with a legend of ``groups`` above its (rows, columns) axes; return both.

    Lengths are inches; ``row_height`` is the height of the axes alone. Fixed margins, because matplotlib's
    constrained layout costs more than all the drawing.
    """
    top = 0.34 + LINE * sum(_lines(group) for group in groups)
    height = top + rows * row_height + (rows - 1) * gap_y + 0.6
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    wide = (WIDTH - left - right - (columns - 1) * gap_x) / columns
    place = {
        "left": left / WIDTH,
        "right": 1 - right / WIDTH,
        "bottom": 0.6 / height,
        "top": 1 - top / height,
    }
    place |= {"wspace": gap_x / wide, "hspace": gap_y / row_height}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=place, **share)
    _legend(figure, groups, height)
    return figure, axes


def _legend(figure: Figure, groups: Sequence[Group], height: float) -> None:
    """Each group on lines of its own; their titles, if any has one, make a column to the left."""
    done, titles = 0, [title for title, _ in groups if title]
    indent = 0.25 + 0.085 * max(map(len, titles)) if titles else 0.0
    for group in groups:
        title, handles = group
        top = 1 - (0.06 + LINE * done) / height
        figure.text(0.1 / WIDTH, top + 0.005 / height, title, va="top", color=GREY, fontsize=10)
        figure.legend(
            handles=list(handles), loc="upper left", ncols=_legend_columns(group), borderpad=0.0,
            bbox_to_anchor=((0.1 + indent) / WIDTH, top), borderaxespad=0.0,
        )  # fmt: skip
        done += _lines(group)


def _lines(group: Group) -> int:
    return -(-len(group[1]) // _legend_columns(group)) if group[1] else 0


def _legend_columns(group: Group) -> int:
    title, handles = group
    widest = max((len(str(handle.get_label())) for handle in handles), default=1)
    wide = WIDTH - (1.0 if title else 0.0)
    n, fit = max(1, len(handles)), max(1, int(wide // (0.082 * widest + 0.6)))
    return -(-n // -(-n // fit))  # six that five would fit into stand three and three


def log_axis(axes: Axes, which: str = "y") -> None:
    """A logarithmic axis whose ticks are plain numbers (30, not 3 x 10^1), few enough to read."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = np.log10(high / low) if 0 < low < high and np.isfinite(high) else 1.0
    if decades < 0.75:
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    else:
        subs = (1.0,) if decades > 4 else (1.0, 3.0) if decades > 1.6 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.set_minor_locator(NullLocator())


def plain_number(value: float) -> str:
    """A tick's text: 0.05, 30, 3,000, 20k, 5M."""
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e6 if unit == "M" else 1e3)
            return f"{scaled:.3g}{unit}" if scaled < 1e4 else f"{value:.0e}"
    return f"{value:,.4g}"


def percent_axis(axes: Axes, which: str = "x") -> None:
    """Fractions shown as per cent."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{plain_number(100 * value)}%"))


def empty(axes: Axes, why: str) -> None:
    """Say ``why`` where a panel has nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY, transform=axes.transAxes, wrap=True)


def literal(text: object) -> str:
    """Text that matplotlib will not read as mathematics."""
    return str(text).replace("$", r"\$")


def short(text: str, length: int = 34) -> str:
    """``text`` cut in the middle to ``length`` characters, safe to draw."""
    if len(text) > length:
        text = f"{text[: length * 2 // 3]}…{text[-(length - length * 2 // 3 - 1) :]}"
    return literal(text)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 4}
    )
    return buffer.getvalue()


def styled() -> Any:
    """Context in which figures are made and saved."""
    return rc_context(STYLE)
