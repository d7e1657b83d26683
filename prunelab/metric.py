"""Metrics, a row each, and the protocol that stands beside every number: the only place that knows names, directions, formats.

A number goes by its metric's name and, after a slash, of what it is: ``ppl/austen``, ``error/held_out/kjv``. Stages
write such names with :meth:`Metric.at`, the report and trackers read them with :meth:`Metric.found`. A metric from outside
the package brings its row in its class (see :mod:`prunelab.evaluation.outside`), and the record of the stage that measured
it keeps the row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Better = Literal["lower", "higher", "neither"]
BETTER: tuple[Better, ...] = ("lower", "higher", "neither")


def number(value: float) -> str:
    """A perplexity or a duration as people read it: 21.40, 1,234, 5.6e+07, ∞, — for none."""
    if math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.1e}"


def error(value: float) -> str:
    """An error as people read it: 0.0963, 0.00123, — for none."""
    if not math.isfinite(value):
        return "—"
    return f"{value:.4f}" if value >= 0.01 or not value else f"{value:.3g}"


def percent(value: float) -> str:
    """A fraction in per cent: 41.3%, — for none."""
    return f"{100 * value:.1f}%" if math.isfinite(value) else "—"


def share(value: float) -> str:
    """A fraction in per cent, to the hundredth: 49.98%, — for none."""
    return f"{100 * value:.2f}%" if math.isfinite(value) else "—"


def count(value: float) -> str:
    """A whole number: 1,234, — for none."""
    return f"{value:,.0f}" if math.isfinite(value) else "—"


def factor(value: float) -> str:
    """How many times as much: 1.42×, — for none."""
    return f"{value:.2f}×" if math.isfinite(value) else "—"


def size(value: float) -> str:
    """Bytes in powers of 1000: 512 B, 4.96 MB, 13.5 GB, — for none."""
    if not math.isfinite(value):
        return "—"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


# how a value is written, and decimals of the value at which two count as equal because they read the same
FORMS: Mapping[str, tuple[Callable[[float], str], int]] = {
    "number": (number, 2), "error": (error, 4), "percent": (percent, 3), "share": (share, 4), "count": (count, 0),
    "factor": (factor, 2), "size": (size, 0),
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One metric. ``name``: the first part of its numbers' names; ``of``: what the rest says, "" where nothing follows.

    ``title`` and ``unit`` ("": none) are for people, ``better`` says which direction is good, ``form`` (of FORMS) how a
    value is written, ``axis`` how it is drawn. ``clock``: it tells of one run on one machine, and a second run need not
    give it again.
    """

    name: str
    title: str
    better: Better = "neither"
    unit: str = ""
    form: str = "number"
    axis: Literal["linear", "log"] = "linear"
    of: str = ""
    clock: bool = False

    def at(self, of: str) -> str:
        """Return the name of this metric's number of ``of``: ``ppl/austen``."""
        return f"{self.name}/{of}"

    def rest(self, name: str) -> str:
        """Return of what the number ``name`` of this metric is."""
        return name.removeprefix(f"{self.name}/")

    def found(self, names: Iterable[object]) -> list[str]:
        """Return of what there are numbers of this metric among ``names``, in order."""
        return [self.rest(str(name)) for name in names if str(name).startswith(f"{self.name}/")]

    def text(self, value: float) -> str:
        """Return a value as people read it."""
        return FORMS[self.form][0](value)

    def best(self, values: Iterable[float]) -> list[bool]:
        """Return which values are the best as they read; ties share it, what is not finite never wins."""
        values = list(values)
        finite = [value for value in values if math.isfinite(value)]
        if len(values) < 2 or not finite or self.better == "neither":
            return [False] * len(values)
        digits = FORMS[self.form][1]
        goal = round(min(finite) if self.better == "lower" else max(finite), digits)
        return [math.isfinite(value) and round(value, digits) == goal for value in values]


PPL = Metric("ppl", "perplexity", "lower", axis="log", of="corpus")
CHANGE = Metric(
    "delta/ppl", "perplexity over the dense model's, minus one", "lower", form="percent", of="corpus"
)
ERROR = Metric("error", "relative error after the last block", "lower", form="error", axis="log", of="stream")
MSE = Metric("mse", "mean squared error after the last block", "lower", form="error", axis="log", of="stream")
KL = Metric(
    "kl",
    "KL divergence of next tokens, dense from pruned",
    "lower",
    "nats",
    form="error",
    axis="log",
    of="stream",
)
LOSS_CHANGE = Metric(
    "delta/loss", "next-token loss minus the dense model's", "lower", "nats", form="error", of="stream"
)
ACC = Metric("acc", "accuracy", "higher", form="percent", of="task")
ACC_NORM = Metric("acc_norm", "accuracy, likelihoods by length", "higher", form="percent", of="task")
TASK_VERSION = Metric("task_version", "version of a task", of="task")
RATIO = Metric("ratio", "removed", form="share", of="what")
PARAMETERS = Metric("parameters", "parameters", form="count", of="which model")
SHOTS = Metric("shots", "shots", form="count")
INTEGRITY = Metric("integrity", "masked weights read back", form="count", of="count")
REPAIR = Metric(
    "repair", "what a repair says of itself, the largest of its blocks", form="error", of="quantity"
)
LM_BEFORE, LM_AFTER = (
    REPAIR.at("lm_loss_before"),
    REPAIR.at("lm_loss_after"),
)  # of a repair of the whole model
PARTS = Metric("parts", "windows of a part", form="count", of="part")
# of the compacted model and, as speed/dense/..., bytes/dense, of the dense one beside it
SPEED = Metric("speed", "tokens per second", "higher", "tokens/s", of="phase", clock=True)
SPEEDUP = Metric(
    "speedup", "tokens per second over the dense model's", "higher", form="factor", of="phase", clock=True
)
BYTES = Metric("bytes", "bytes of the parameters", "lower", "bytes", form="size", of="which model")
GENERATED = Metric("generated", "windows that the dense model wrote", form="count", of="count")
# the report's own, made of those above
OVERFIT = Metric("overfit", "over-fitting index", "lower", of="corpus")
MEAN_PPL = Metric("mean/ppl", "perplexity, geometric mean of the corpora", "lower", axis="log")
MEAN_ACCURACY = Metric("acc/mean", "accuracy, mean of the tasks", "higher", form="percent")
MEAN_COST = Metric(
    "mean/cost", "what pruning costs: perplexity ÷ dense − 1", "lower", form="percent", axis="log"
)
MEAN_HELD_OUT = Metric(
    "mean/held_out", "relative error, mean of held-out texts", "lower", form="error", axis="log"
)
MEAN_MSE = Metric(
    "mean/mse_held_out", "mean squared error, mean of held-out texts", "lower", form="error", axis="log"
)
MEAN_OVERFIT = Metric("mean/overfit", "over-fitting index of the mean held-out error", "lower")
COST = Metric("cost", "what the work took", "lower", of="stage and resource", clock=True)

METRICS: Mapping[str, Metric] = {
    row.name: row
    for row in (
        PPL, CHANGE, ERROR, MSE, KL, LOSS_CHANGE, ACC, ACC_NORM, TASK_VERSION, RATIO, PARAMETERS, SHOTS, INTEGRITY, REPAIR,
        PARTS, GENERATED, SPEED, SPEEDUP, BYTES,
        OVERFIT, MEAN_PPL, MEAN_ACCURACY, MEAN_COST, MEAN_HELD_OUT, MEAN_MSE, MEAN_OVERFIT, COST,
    )
}  # fmt: skip

# numbers that several readers ask for
CALIBRATION, RECONSTRUCTION, HELD_OUT, FITTED = (
    "calibration",
    "reconstruction",
    "held_out",
    "fitted",
)  # streams
HELD_OUT_ERROR = replace(ERROR, name=ERROR.at(HELD_OUT), of="corpus")
HELD_OUT_MSE = replace(MSE, name=MSE.at(HELD_OUT), of="corpus")
ON_CALIBRATION, ON_OWN_TEXT = ERROR.at(CALIBRATION), ERROR.at(RECONSTRUCTION)
ON_FITTED, MSE_FITTED = ERROR.at(FITTED), MSE.at(FITTED)
MEAN_ACC = MEAN_ACCURACY.name
OF_WEIGHTS, OF_PARAMETERS, OF_UNITS = RATIO.at("weights"), RATIO.at("parameters"), RATIO.at("units")
VIOLATIONS, MASKED = INTEGRITY.at("violations"), INTEGRITY.at("masked")


def is_clock(name: str) -> bool:
    """Say whether the number ``name`` tells of one run on one machine."""
    metric = metric_of(name)
    return metric is not None and metric.clock


def metric_of(name: str, others: Mapping[str, Metric] | None = None) -> Metric | None:
    """Return the metric of the number ``name``, the one with the longest name that fits; ``others``: from outside."""
    table = {**METRICS, **(others or {})}
    fits = [key for key in table if name == key or name.startswith(f"{key}/")]
    return table[max(fits, key=len)] if fits else None


@dataclass(frozen=True)
class Protocol:
    """How a number was measured: two numbers compare if all of this is equal but what is compared.

    ``model``: the dense model's identity; ``tokenizer``, ``corpus``, ``tokens``: digests; ``text``: id of the corpus, with
    ``revision``, ``split``, ``joiner``, ``sampler``; ``context`` in tokens and ``windows``; ``harness`` and ``task``: name and
    version, ``documents`` asked for (None: all); ``definition``: class and fields of a metric from outside. Of speeds:
    ``device`` by its name, ``threads``, ``batch`` sequences at once, ``prompt`` and ``new_tokens`` tokens of each, and
    ``rounds``, of which the median counts. None: does not apply.
    """

    metric: str
    model: str
    dtype: str
    tokenizer: str | None = None
    text: str | None = None
    revision: str | None = None
    corpus: str | None = None
    split: str | None = None
    joiner: str | None = None
    sampler: str | None = None
    context: int | None = None
    windows: int | None = None
    tokens: str | None = None
    harness: str | None = None
    task: str | None = None
    documents: int | None = None
    definition: str | None = None
    device: str | None = None
    threads: int | None = None
    batch: int | None = None
    prompt: int | None = None
    new_tokens: int | None = None
    rounds: int | None = None

    def plain(self) -> dict[str, Any]:
        """Return the fields that apply, as JSON-ready data."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def digest_of(protocol: Mapping[str, Any]) -> str:
    """Return 12 hex digits that stand for a protocol as :meth:`Protocol.plain` gives it."""
    return hashlib.sha256(json.dumps(dict(protocol), sort_keys=True).encode("utf-8")).hexdigest()[:12]
