"""What the numbers say in sentences, and the facts and checks around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from prunelab.metric import (
    MEAN_HELD_OUT,
    MEAN_OVERFIT,
    MEAN_PPL,
    ON_CALIBRATION,
    ON_FITTED,
    VIOLATIONS,
    number,
)
from prunelab.report.aggregate import at_ratio, by_cell, common_ratio
from prunelab.report.collect import DONE, FAILED, UNFINISHED, Study
from prunelab.report.label import heading, in_words
from prunelab.report.protocol import unlike

UNLIKE = 0.005  # removed shares of weights that differ by more are not the same
QUESTION = (
    "At a given sparsity, which way of pruning this model keeps what it knows, "
    "and does fitting the calibration text better help or hurt outside it?"
)


def chosen_ratio(study: Study) -> float | None:
    """The ratio at which the figures of the inside are drawn: the largest that all variants reached."""
    return common_ratio(by_cell(study.frame, [MEAN_PPL.name]))


def findings(study: Study) -> list[str]:
    """What was not measured alike, then one or two sentences per facet at the largest common ratio, if it has any."""
    ratio = chosen_ratio(study)
    if ratio is None:
        return unlike(study)
    cells = by_cell(
        study.frame, [MEAN_PPL.name, ON_CALIBRATION, ON_FITTED, MEAN_HELD_OUT.name, MEAN_OVERFIT.name]
    )
    found = [text for facet in study.facets for text in _facet(cells, facet, ratio, len(study.corpora))]
    return [*unlike(study), *found]


def _facet(cells: pd.DataFrame, facet: str, ratio: float, corpora: int) -> list[str]:
    here = at_ratio(cells[cells["facet"] == facet], ratio)
    ranked = here.dropna(subset=[MEAN_PPL.name]).sort_values(MEAN_PPL.name).to_dict("records")
    if not ranked:
        return []
    what = f"geometric-mean perplexity over {corpora} corpora" if corpora > 1 else "perplexity"
    text = f"At ratio {ratio:g}, {in_words(facet)}: {ranked[0]['variant']} has the lowest {what}, "
    text += number(ranked[0][MEAN_PPL.name])
    if len(ranked) > 1:
        text += f"; next is {ranked[1]['variant']} with {number(ranked[1][MEAN_PPL.name])}"
    return [text + ".", *_amounts(ranked), *_fit(here, facet)]


def _amounts(ranked: Sequence[Mapping[Any, Any]]) -> list[str]:
    """That not all removed the same: whole units can miss what was asked for, and the ranking is then of unlike amounts."""
    removed = [float(row["removed"]) for row in ranked]
    if max(removed) - min(removed) <= UNLIKE:
        return []
    told = ", ".join(f"{row['variant']} {row['removed']:.1%}" for row in ranked)
    return [f"That is not one amount of removed weights: {told}."]


def _fit(here: pd.DataFrame, facet: str) -> list[str]:
    """Whether the best fit of the calibration text is the best fit of held-out text too."""
    if not {ON_CALIBRATION, ON_FITTED, MEAN_HELD_OUT.name, MEAN_OVERFIT.name} <= set(here.columns):
        return []
    same = here[ON_CALIBRATION].equals(here[ON_FITTED])
    known = here.dropna(subset=[ON_CALIBRATION, MEAN_HELD_OUT.name, MEAN_OVERFIT.name])
    if len(known) < 2:
        return []
    near = known.sort_values(ON_CALIBRATION).iloc[0]["variant"]
    far = known.sort_values(MEAN_HELD_OUT.name).iloc[0]["variant"]
    index = MEAN_OVERFIT.name
    low, high = (known.sort_values(index).iloc[place] for place in (0, -1))
    text = (
        f"{near} has the smallest error on calibration and on held-out text"
        if near == far
        else f"{near} has the smallest error on calibration text, but {far} on held-out text"
    )
    span = f"from {low[index]:.2f} ({low['variant']}) to {high[index]:.2f} ({high['variant']})"
    over = "the calibration error" if same else "the error on what was fitted to"
    return [f"{heading(facet)}, {text}; held-out error is {span} times {over}."]


def facts(study: Study) -> list[tuple[str, str]]:
    """Name and text of what describes the study: models, text, seeds, trials, store, versions."""
    frame = study.frame
    counts = frame["status"].value_counts()
    told = [f"{counts[status]} {status}" for status in (DONE, FAILED, UNFINISHED) if counts.get(status)]
    pairs = [("trials", f"{len(frame)} ({', '.join(told)})")]
    pairs += [(name, _values(frame, name)) for name in ("model", "calibration", "pattern", "allocation")]
    pairs += [("reconstruction", _values(frame, "reconstruction")), ("seed", _values(frame, "seed"))]
    for group, names in (
        ("calibration", ("n_samples", "seq_len")),
        ("evaluation", ("max_samples", "seq_len", "error_samples")),
    ):
        texts = [_sizes(study, group, name) for name in names]
        pairs += [(f"{group} size", ", ".join(text for text in texts if text))]
    seconds = study.stages["seconds"].sum()
    pairs += [("computed", f"{len(study.stages)} stages, {duration(seconds)} of work")]
    pairs += [("planned", study.created), ("store", str(study.store))]
    pairs += [("command", " ".join(study.argv))]
    pairs += [("made with", "; ".join(f"{name} {text}" for name, text in study.versions.items()))]
    return [(name, text) for name, text in pairs if text]


def _sizes(study: Study, group: str, name: str) -> str:
    """A size and its values over the trials: ``n_samples 8 | 32``; nothing where no trial has one."""
    inner = [trial["config"].get(group) for trial in study.trials.values()]
    found = dict.fromkeys(i.get(name) for i in inner if isinstance(i, dict) and i.get(name) is not None)
    return f"{name} {' | '.join(map(str, found))}" if found else ""


def _values(frame: pd.DataFrame, name: str) -> str:
    values = [str(value) for value in dict.fromkeys(frame[name]) if value is not None and value == value]
    return ", ".join(values[:12]) + (f" and {len(values) - 12} more" if len(values) > 12 else "")


def duration(seconds: float) -> str:
    """Seconds as people say it: 45 s, 12 min, 3 h 20 min."""
    if not math.isfinite(seconds) or seconds < 90:
        return f"{seconds:.0f} s" if math.isfinite(seconds) else "unknown time"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def missing(study: Study) -> list[dict[str, Any]]:
    """Trials without a result: number, name, status, reason, log; failed ones first."""
    rows = study.frame[study.frame["status"] != DONE][["number", "name", "status", "reason", "log"]]
    return sorted(rows.to_dict("records"), key=lambda row: (row["status"] != FAILED, row["number"]))


def integrity(study: Study) -> tuple[int, int, list[str]]:
    """(violations, trials checked, names with violations) of the masks: a masked weight must be exactly 0."""
    if VIOLATIONS not in study.frame:
        return 0, 0, []
    counts = pd.to_numeric(study.frame[VIOLATIONS], errors="coerce")
    bad = study.frame["name"][counts > 0]
    return int(counts.fillna(0).sum()), int(counts.notna().sum()), [str(name) for name in bad]
