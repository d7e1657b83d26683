"""Stage speed: how fast and how large the compacted model is, beside the dense one, in one process and in turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from prunelab.evaluation.cost import metered
from prunelab.evaluation.speed import Speed, device_name, measure_speed, speedup
from prunelab.metric import BYTES, SPEED, SPEEDUP
from prunelab.models.load import load_decoder
from prunelab.models.memory import release_host_memory
from prunelab.stages import setting
from prunelab.stages.measured import of_model, protocols
from prunelab.stages.part import STATE
from prunelab.store.context import Context, Result
from prunelab.structures.state import open_state
from prunelab.structures.surgery import compact

DENSE, COMPACT = "dense", "compact"
PREFILL, DECODE = "prefill", "decode"
_WARM_UP = 1


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Time the compacted model and the dense one.

    Metrics: ``speed/prefill`` and ``speed/decode`` in tokens per second, by the median round; ``speed/dense/...`` of the
    dense model; ``speedup/...``, the median of the ratios of each round, with its quartiles ``speedup/low/...`` and
    ``speedup/high/...``; ``bytes/compact`` and ``bytes/dense`` of the parameters, tied ones once, which a
    checkpoint's files have on disk but for their headers. Costs: the fastest and the slowest
    round of each.

    The model is compacted before the dense one is loaded: at the peak memory holds both, less than two dense models.
    """
    with metered() as cost:
        device = setting.prepare(context.runtime)
        (given,) = context.inputs.values()
        small = load_decoder(context.runtime["model"], device=device)
        compact(small, open_state(given.folder / STATE))
        release_host_memory()
        dense = load_decoder(context.runtime["model"], device=device)
        context.progress("speed", 0, 1)
        found = measure_speed(
            {DENSE: dense, COMPACT: small}, batch_size=identity["batch"], prompt_len=identity["prompt"],
            new_tokens=identity["new_tokens"], rounds=identity["rounds"], warm_up=_WARM_UP,
        )  # fmt: skip
        context.progress("speed", 1, 1)
        each = identity["batch"] * (identity["prompt"] + identity["new_tokens"])
        cost.tokens = len(found) * (identity["rounds"] + _WARM_UP) * each
    metrics = numbers(found[DENSE], found[COMPACT])
    context.log({"event": "speed", **metrics})
    model = of_model(identity["model"])
    timed = replace(
        model, device=device_name(small.device), threads=torch.get_num_threads(), batch=identity["batch"],
        prompt=identity["prompt"], new_tokens=identity["new_tokens"], rounds=identity["rounds"],
    )  # fmt: skip
    how = {name: model if name.startswith(BYTES.at("")) else timed for name in metrics}
    return Result(metrics, {}, {**cost.values(), **_rounds(found)}, protocols(how, metrics))


def numbers(dense: Speed, small: Speed) -> dict[str, float | int]:
    """Return the metrics of two models that were timed together."""
    metrics: dict[str, float | int] = {}
    for phase, mine, theirs in (
        (PREFILL, small.prefill_tokens_per_s, dense.prefill_tokens_per_s),
        (DECODE, small.decode_tokens_per_s, dense.decode_tokens_per_s),
    ):
        metrics |= {SPEED.at(phase): mine, SPEED.at(f"{DENSE}/{phase}"): theirs}
    for phase, mine, theirs in (
        (PREFILL, small.prefill, dense.prefill),
        (DECODE, small.decode, dense.decode),
    ):
        low, middle, high = speedup(theirs, mine)
        metrics |= {
            SPEEDUP.at(phase): middle,
            SPEEDUP.at(f"low/{phase}"): low,
            SPEEDUP.at(f"high/{phase}"): high,
        }
    return metrics | {BYTES.at(COMPACT): small.parameter_bytes, BYTES.at(DENSE): dense.parameter_bytes}


def _rounds(found: Mapping[str, Speed]) -> dict[str, float]:
    """Return the fastest and the slowest round's seconds of each model and phase: how steady the machine was."""
    return {
        f"{name}/{phase}_{word}_s": take(times)
        for name, speed in found.items()
        for phase, times in ((PREFILL, speed.prefill), (DECODE, speed.decode))
        for word, take in (("least", min), ("most", max))
    }
