"""What follows from the records: mean perplexity, the error on what was fitted, over-fitting indices.

The over-fitting index of a held-out corpus is its error over the error on the text that the weights were fitted
to: a repair's own tokens where it has some (stream ``reconstruction``), else the mask's (``calibration``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from prunelab.metric import (
    CALIBRATION,
    ERROR,
    FITTED,
    HELD_OUT,
    HELD_OUT_ERROR,
    HELD_OUT_MSE,
    MEAN_COST,
    MEAN_HELD_OUT,
    MEAN_MSE,
    MEAN_OVERFIT,
    MEAN_PPL,
    MSE,
    OVERFIT,
    PPL,
    RECONSTRUCTION,
    Metric,
)  # fmt: skip
from prunelab.plan.kind import DENSE, metric_prefix


def of_dense(name: str) -> str:
    """The column of the dense model's number ``name``."""
    return metric_prefix(DENSE, DENSE) + name


def derived(frame: pd.DataFrame) -> pd.DataFrame:
    """Add to each trial ``mean/ppl`` (geometric), ``mean/cost`` (that over the dense model's, minus one), ``error/fitted``,
    ``mse/fitted``, the mean held-out errors and the over-fitting indices: ``overfit/<corpus>``, and ``mean/overfit`` of
    the mean held-out error.
    """
    ppl = [PPL.at(corpus) for corpus in PPL.found(frame.columns)]
    nothing = pd.Series(np.nan, index=frame.index)
    new = {MEAN_PPL.name: nothing, MEAN_COST.name: nothing}
    dense = [of_dense(column) for column in ppl]
    if ppl and set(dense) <= set(frame.columns):
        logs = [np.log(frame[columns].astype(float)).to_numpy() for columns in (ppl, dense)]
        new[MEAN_COST.name] = pd.Series(np.expm1((logs[0] - logs[1]).mean(axis=1)), index=frame.index)
    if ppl:
        new[MEAN_PPL.name] = pd.Series(np.exp(np.log(frame[ppl].astype(float)).mean(axis=1, skipna=False)))
    near = nothing
    for metric, far, mean in ((ERROR, HELD_OUT_ERROR, MEAN_HELD_OUT), (MSE, HELD_OUT_MSE, MEAN_MSE)):
        fitted, corpora = _fitted(frame, metric), far.found(frame.columns)
        if fitted is not None:
            new[metric.at(FITTED)] = fitted
        if metric is ERROR or corpora:
            columns = [far.at(corpus) for corpus in corpora]
            new[mean.name] = frame[columns].astype(float).mean(axis=1, skipna=False) if columns else nothing
        if metric is ERROR:
            near = nothing if fitted is None else fitted.where(fitted > 0)
            new[MEAN_OVERFIT.name] = new[mean.name] / near
            new |= {OVERFIT.at(c): pd.Series(frame[far.at(c)].astype(float) / near) for c in corpora}
    return pd.concat([frame, pd.DataFrame(new)], axis=1)


def _fitted(frame: pd.DataFrame, metric: Metric) -> pd.Series | None:
    found = [
        frame[metric.at(s)].astype(float) for s in (RECONSTRUCTION, CALIBRATION) if metric.at(s) in frame
    ]
    return found[0].combine_first(found[-1]) if found else None


def derived_blocks(blocks: pd.DataFrame) -> pd.DataFrame:
    """Add ``overfit`` to the rows of each trial and block: error over the error on what was fitted; NaN where
    that is 0 or absent.
    """
    where = ["number", "block"]
    near = pd.DataFrame({FITTED: fitted_rows(blocks).set_index(where)["error"]})
    joined = blocks.merge(near, left_on=where, right_index=True, how="left")
    return blocks.assign(overfit=(joined["error"] / joined[FITTED].where(joined[FITTED] > 0)).to_numpy(float))


def fitted_rows(blocks: pd.DataFrame) -> pd.DataFrame:
    """The rows of the stream that was fitted: one per trial and block."""
    near = blocks[blocks["stream"].isin([CALIBRATION, RECONSTRUCTION])]
    return near.sort_values("stream").drop_duplicates(["number", "block"], keep="last").sort_index()


def held_out_rows(blocks: pd.DataFrame) -> pd.DataFrame:
    """The rows of held-out streams."""
    return blocks[blocks["stream"].astype(str).str.startswith(f"{HELD_OUT}/")]


def chosen(frame: pd.DataFrame) -> pd.Series:
    """What decides the masks of each row: method and the rest, with the size of the text where that varies."""
    return frame["mask"].where(frame["size"] == "", frame["mask"] + " + " + frame["size"])


def distinct(values: Iterable[object]) -> tuple[str, ...]:
    """Values as text, each once, in order."""
    return tuple(dict.fromkeys(str(value) for value in values))
