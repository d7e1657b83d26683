"""What methods say of units: tables as the records keep them, their first rows for the page, and a layer's redundancy drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from prunelab.report.aggregate import at_ratio
from prunelab.report.collect import Study
from prunelab.report.figure import GREY, empty, looks
from prunelab.report.redundancy import kind_panels
from prunelab.report.table import csv_text

CUT, REDUNDANCY = "cut", "redundancy"
MOST_ROWS = 24  # of a table on the page
_WHOSE = ["number", "name", "seed", "facet", "variant", "ratio"]
_TITLES = {
    "removed": "Removed units",
    REDUNDANCY: "Redundancy of each layer",
    "spectrum": "Redundancy spectrum of each layer",
    "tokens": "Tokens that move the most redundant pairs most",
    "groups": "Groups of units that say the same",
    "modules": "Modules",
    "learning": "Learned shares",
    "fit": "Probes of the whole model",
    "blend": "Blend fitted to probes",
    "runs": "Searches compared",
}
NOTES = {
    "removed": (
        "In the order in which they went. Partner: the unit that made it redundant; into: the one that stays at the end of "
        "the chain of partners; nmi: normalised mutual information of the two; r2 and sign of the linear fit of one by the "
        "other."
    ),
    REDUNDANCY: (
        "Rule and sigma: how wide the kernels are, in standard deviations; floor: what chance alone gives; redundant: units "
        "with a partner above it, or dead; level: from where on two units are in one group; q0 to q100: quantiles over units "
        "of the value with the most redundant partner."
    ),
    "spectrum": (
        "The values that units have with their most redundant partner, sorted, at some ranks; share: of the units that have as "
        "much."
    ),
    "tokens": (
        "Of the sampled tokens those at which each of the two is largest, in brackets behind the text before; shared: how many "
        "of them are the same. samples: their numbers in the draw; tokens: their ids."
    ),
    "groups": (
        "Any two of a group share more than the level of their layer; mean_nmi: of all its pairs; gone: how many of them were "
        "removed; members: the unit with most partners first. No unit is in two groups."
    ),
    "modules": (
        "Units of like sensitivity (V: mean spread of a unit's rank over texts) and magnitude (A: mean percentile on the main "
        "text); metric: what ranked them inside the module; share: of them that went. Module -1: scores are 0 on every text."
    ),
    "learning": (
        "Uniform and learned: the objective of hard masks on windows that nothing else saw, at the start and at the best step."
    ),
    "fit": (
        "Used: the blend that importance comes from; rho: rank correlation of what it predicts with the measured change of the "
        "loss, on probes that were held out."
    ),
    "blend": (
        "Weight: mean weight of the coarse estimate; scale: what one mean unit of this block and kind adds to the loss, in "
        "nats; of uncertainty in standard deviations of the measured changes."
    ),
    "runs": "kl: how far the whole model's predictions move, in nats a token on windows that are held out, before any repair.",
}


@dataclass(frozen=True)
class Told:
    """A table of one trial: ``rows`` of text below ``header``, the first of ``total`` in the record, and what that left out."""

    table: str
    title: str
    trial: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: int
    cut: str


def told(study: Study, ratio: float) -> list[Told]:
    """The tables of the trials at ``ratio``, by table and trial. Of long ones the first rows of every kind and block."""
    trials = at_ratio(study.frame, ratio)
    found = []
    for name in study.units:
        if name == CUT:
            continue
        table = study.units[name]
        for trial in trials.to_dict("records"):
            own = table[table["number"] == trial["number"]][_columns(table)].dropna(axis=1, how="all")
            if len(own):
                first = _first(own)
                rows = tuple(tuple(_text(value) for value in row) for row in first.itertuples(index=False))
                title = _TITLES.get(name, name)
                cut = _cut(study, trial["number"], name)
                header = tuple(map(str, first.columns))
                found.append(Told(name, title, str(trial["name"]), header, rows, len(own), cut))
    return found


# columns as people read them: records sort their keys
_ORDER = (
    "shot", "block", "kind", "module", "unit", "partner", "into", "rank", "units", "gone", "share", "redundant", "V", "A",
    "metric", "nmi", "mean_nmi", "members", "shared", "unit_text", "partner_text",
    "r2", "sign", "reason", "estimator", "alpha", "normalize", "search", "victim", "rule",
    "sigma", "samples", "floor", "threshold", "level", "q0", "q5", "q25", "q50", "q75", "q95",
    "q100",
    "run", "kl", "kept", "probes", "used", "rho_learned", "rho_attention", "weight", "scale", "modules", "steps",
    "from_step", "uniform", "learned",
)  # fmt: skip


def _columns(table: pd.DataFrame) -> list[str]:
    """The columns but the trial's number, as people read them; those of others at the end."""
    own = [str(column) for column in table.columns if column != "number"]
    return sorted(own, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


def _first(own: pd.DataFrame) -> pd.DataFrame:
    # what a method says of the whole model has no block
    whose = [name for name in ("shot", "block", "kind") if name in own]
    rank = own.groupby(whose, sort=False).cumcount()
    return own.loc[rank.sort_values(kind="stable").index[:MOST_ROWS].sort_values()]


def _cut(study: Study, number: int, name: str) -> str:
    """What the record left out of a table of a trial."""
    cut = study.units.get(CUT, pd.DataFrame({"number": [], "table": []}))
    own = cut[(cut["number"] == number) & (cut["table"] == f"units/{name}")]
    if own.empty:
        return ""
    lost = int(own["rows"].sum() - own["kept"].sum())
    return f"{lost:,} more rows were not recorded, which keeps {own['kept'].max()} of a kind in a block."


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def units_csv(study: Study) -> Iterator[tuple[str, str]]:
    """Yield name and text of a CSV file for each table: every recorded row, with its trial."""
    for name, table in study.units.items():
        rows = study.frame[_WHOSE].merge(table, on="number")
        yield f"units_{name.replace('/', '_')}.csv", csv_text(rows, [*_WHOSE, *_columns(table)])


def has_spectrum(study: Study, ratio: float) -> bool:
    """Say whether a trial at ``ratio`` knows the nearest partners' values."""
    return len(_spectra(study, ratio)) > 0


def _spectra(study: Study, ratio: float) -> pd.DataFrame:
    table = study.units.get(REDUNDANCY, pd.DataFrame())
    if not {"q5", "q50", "q95"} <= set(table.columns):
        return pd.DataFrame()
    trials = at_ratio(study.frame, ratio)[["number", "facet", "variant"]]
    rows = table[(table["shot"] == 1) & table["q50"].notna()]  # later shots see what the first left
    return rows.merge(trials, on="number")


def spectrum(study: Study, ratio: float) -> Figure:
    """The nearest partners' values over blocks: a panel for each kind, facet and variant, seeds as their mean."""
    rows = _spectra(study, ratio)
    handles: list[Any] = [
        Line2D([], [], color=GREY, label="median unit"),
        Patch(color=GREY, alpha=0.45, label="middle half of the units"),
        Patch(color=GREY, alpha=0.2, label="from 5 % to 95 %"),
    ]
    if "floor" in rows and rows["floor"].notna().any():
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (4, 2)), label="what chance gives"))

    def draw(axes: Axes, own: pd.DataFrame, variant: str) -> None:
        _panel(axes, own, study.variants.index(variant))

    return kind_panels(study, rows, handles, draw)


def _panel(axes: Axes, own: pd.DataFrame, index: int) -> None:
    names = [name for name in ("q5", "q25", "q50", "q75", "q95", "floor") if name in own]
    numbers = own[["block", *names]].apply(pd.to_numeric, errors="coerce")
    means = numbers.groupby("block")[names].mean().sort_index()
    if means.empty:
        return empty(axes, "nothing known")
    colour = looks(index)["color"]
    axes.fill_between(means.index, means["q5"], means["q95"], color=colour, alpha=0.2, linewidth=0)
    axes.fill_between(means.index, means["q25"], means["q75"], color=colour, alpha=0.3, linewidth=0)
    axes.plot(means.index, means["q50"], color=colour, marker=looks(index)["marker"])
    if "floor" in means and means["floor"].notna().any():
        axes.plot(means.index, means["floor"], color=GREY, linestyle=(0, (4, 2)))
    axes.set_xlabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return None
