"""Seeds to mean and spread, and which points are worth looking at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from prunelab.errors import StoreError
from prunelab.metric import OF_WEIGHTS

SPREAD = "/spread"


def by_cell(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Mean of ``columns`` over seeds for each (facet, variant, ratio); ``<column>/spread`` is the sample
    standard deviation (NaN for one seed), ``n`` the number of seeds, ``removed`` the share of weights that did go, which
    whole units can miss. Rows without any value are left out; groups
    keep their order. A trial that stands in a plan twice counts once.

    Raises:
        StoreError: two trials of one seed differ in nothing that a table shows. Their mean would be nobody's number.
    """
    frame = frame.drop_duplicates("key") if "key" in frame else frame
    columns = [column for column in columns if column in frame]
    data = frame[[name for name in ("facet", "variant", "ratio", "seed") if name in frame]].copy()
    if OF_WEIGHTS in frame:  # patterns without a nominal ratio, such as 2:4
        data["ratio"] = data["ratio"].where(data["ratio"].notna(), frame[OF_WEIGHTS])
    data["ratio"] = pd.to_numeric(data["ratio"], errors="coerce")
    data[columns] = frame[columns].apply(pd.to_numeric, errors="coerce")
    data = data.dropna(subset=columns, how="all") if columns else data
    groups = data.groupby(["facet", "variant", "ratio"], sort=False, dropna=False)
    cells = groups[columns].mean().join(groups[columns].std(ddof=1).add_suffix(SPREAD))
    cells["n"] = groups.size()
    removed = pd.to_numeric(frame[OF_WEIGHTS], errors="coerce") if OF_WEIGHTS in frame else data["ratio"]
    data["removed"] = removed.reindex(data.index).fillna(data["ratio"])
    cells["removed"] = data.groupby(["facet", "variant", "ratio"], sort=False, dropna=False)["removed"].mean()
    if "seed" in frame:
        seeds = groups["seed"].nunique(dropna=False)
        for cell in seeds[seeds < cells["n"]].index[:1]:
            names = ", ".join(frame.loc[groups.groups[cell], "name"].astype(str))
            raise StoreError(
                f"Trials of one seed that differ in nothing shown: {names}. That is a fault of prunelab."
            )
    return cells.reset_index()


def pareto(cells: pd.DataFrame, error: str, perplexity: str) -> np.ndarray:
    """Which rows no other row beats: one that removes at least as much with no larger error and perplexity,
    and is better in one of the three. Boolean (rows,); rows with missing values are never on the front.
    """
    # a layer loses whole weights: what differs by less than a tenth of a percent is the same amount
    points = np.column_stack([-cells["removed"].round(3), cells[error], cells[perplexity]]).astype(float)
    if not len(points):
        return np.zeros(0, dtype=bool)
    no_worse = (points[:, None, :] <= points[None, :, :]).all(axis=2)
    better = (points[:, None, :] < points[None, :, :]).any(axis=2)
    beaten = np.any(no_worse & better, axis=0)
    return np.logical_and(~beaten, np.isfinite(points).all(axis=1))


def common_ratio(cells: pd.DataFrame) -> float | None:
    """The largest ratio that every variant reached in every facet it occurs in; else the largest ratio that
    most did; None without ratios.
    """
    known = cells.dropna(subset=["ratio"])
    if known.empty:
        return None
    counts = known.groupby("ratio")[["facet", "variant"]].apply(lambda part: len(part.drop_duplicates()))
    return float(counts[counts == counts.max()].index.max())


def at_ratio(frame: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Rows whose ratio is ``ratio`` up to rounding."""
    return frame[np.isclose(frame["ratio"].astype(float), ratio, rtol=0, atol=1e-9)]
