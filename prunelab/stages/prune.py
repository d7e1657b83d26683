"""Stage prune: a method on tokens, or on statistics of the dense model. Progress is a state per shot or a part per block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunelab.config.build import build
from prunelab.evaluation.cost import metered
from prunelab.evaluation.integrity import check
from prunelab.evaluation.ratios import ratios
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder
from prunelab.passes.linear import BlockReport, prune_linear
from prunelab.passes.statistics import StatisticsFolder
from prunelab.passes.structured import ShotReport, prune
from prunelab.sparsity.pattern import build_pattern
from prunelab.stages import calibrate, setting
from prunelab.stages.part import STATE, Parts
from prunelab.store.context import Context, Result
from prunelab.structures.state import State, StateReader, open_state, save_state
from prunelab.structures.surgery import compact_parameters

Tables = dict[str, list[dict[str, Any]]]


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Prune to the schedule's last target, from the longest finished prefix; writes ``state.safetensors``.

    Metrics: the three ratios, parameters before and after, ``shots`` of the whole schedule, ``integrity/*``.
    The shots that this stage ran itself are counted in ``cost.shots``. Tables: ``shots`` and ``sites``.
    Ranks of ``context.group`` share the calibration tokens; rank 0 writes and returns all this, the others nothing.
    """
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        tokens = calibrate.read(context.inputs["calibrate"].folder) if "calibrate" in context.inputs else None
        tokens = None if tokens is None else tokens.to(device)
        structured = identity["pattern"] == "rows_columns"
        state, tables, n_shots = (_rows_columns if structured else _single)(
            identity, context, decoder, tokens
        )
        if not context.leads:
            return Result({})
        integrity = check(decoder, state)
        save_state(state, context.outputs / STATE)
        metrics = {
            **ratios(state, decoder),
            "parameters/dense": decoder.n_parameters(),
            "parameters/compact": compact_parameters(state, decoder),
            "shots": len(identity["schedule"]),
            **integrity,
        }
        cost.tokens = 0 if tokens is None else tokens.numel() * n_shots
    return Result(metrics, tables, {**cost.values(), "shots": n_shots})


def _rows_columns(
    identity: Mapping[str, Any], context: Context, decoder: Decoder, tokens: torch.Tensor | None
) -> tuple[State, Tables, int]:
    schedule = identity["schedule"]
    tables, start, first = _start(context)

    def on_shot(report: ShotReport, state: State) -> None:
        row = {
            "shot": report.shot,
            "target": report.target,
            "achieved": report.achieved,
            "threshold": report.threshold,
        }
        tables["shots"].append(row)
        tables["sites"] = [dict(site) for site in report.sites]
        context.log({"event": "shot", **row})
        if report.shot < len(schedule):  # the last one is the result itself
            if context.leads:
                save_state(state, context.work / f"shot-{report.shot}.safetensors")
            context.checkpoint(report.shot, tables)
            if context.leads:
                (context.work / f"shot-{report.shot - 1}.safetensors").unlink(missing_ok=True)

    state = prune(
        decoder, build(context.runtime["method"], "method"), tokens, schedule,
        seed=identity["seed"], batch_size=_batch_size(context, tokens), allocation=identity["allocation"],
        start=start, start_shot=first, on_shot=on_shot, progress=_say(context), group=setting.group(context),
    )  # fmt: skip
    return state, tables, len(schedule) - first


def _start(context: Context) -> tuple[Tables, StateReader | None, int]:
    """Return tables so far, the state to start from and its shot: this stage's own progress, else a finished prefix."""
    step, values = context.resume()
    if step:
        return values, open_state(context.work / f"shot-{step}.safetensors"), step
    if context.previous is not None:
        record = context.previous.record
        tables = {name: [dict(row) for row in record.tables[name]] for name in ("shots", "sites")}
        for row in tables["shots"]:
            context.log({"event": "shot", **row})
        return tables, open_state(context.previous.folder / STATE), len(tables["shots"])
    return {"shots": [], "sites": []}, None, 0


def _single(
    identity: Mapping[str, Any], context: Context, decoder: Decoder, tokens: torch.Tensor | None
) -> tuple[State, Tables, int]:
    parts = Parts(context, {"sites": []})
    (ratio,) = identity["schedule"] or (0.0,)

    def on_block(report: BlockReport, part: State) -> None:
        parts.tables["sites"] += [dict(site) for site in report.sites]
        context.log(
            {"event": "pruned", "block": report.block, "ratio": report.ratio, "achieved": report.achieved}
        )
        parts.save(report.block + 1, part)

    allocation = context.runtime["allocation"]
    state = prune_linear(
        decoder, build(context.runtime["method"], "method"), tokens,
        pattern=build_pattern(identity["pattern"], n=identity["n"], m=identity["m"], within=identity["within"]),
        ratio=ratio, seed=identity["seed"], batch_size=_batch_size(context, tokens),
        allocation=build(allocation, "allocation") if "_target_" in allocation else allocation["name"],
        propagation=identity["propagation"], statistics=_statistics(context),
        placement=setting.placement(context),
        start=parts.start, start_block=parts.done, on_block=on_block, progress=_say(context),
        group=setting.group(context),
    )  # fmt: skip
    removed, total = (sum(row[key] for row in parts.tables["sites"]) for key in ("removed", "total"))
    shots = [{"shot": 1, "target": ratio, "achieved": removed / total, "threshold": None}]
    return state, {**parts.tables, "shots": shots}, 1


def _statistics(context: Context) -> StatisticsFolder | None:
    found = context.inputs.get("statistics")
    return None if found is None else StatisticsFolder(found.folder, found.record.identity["statistics"])


def _batch_size(context: Context, tokens: torch.Tensor | None) -> int:
    return 1 if tokens is None else setting.batch_size(context.runtime, tokens.shape[1])


def _say(context: Context) -> Any:
    return lambda row: context.progress(row["phase"], row["done"], row["total"])
