"""Stage prune: shots of a method on the calibration tokens; progress is one state per shot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunelab.config.build import build
from prunelab.evaluation.cost import metered
from prunelab.evaluation.integrity import check
from prunelab.evaluation.ratios import ratios
from prunelab.models.load import load_decoder
from prunelab.passes.structured import ShotReport, prune
from prunelab.stages import calibrate, setting
from prunelab.store.context import Context, Result
from prunelab.structures.state import State, StateReader, apply_state, open_state, save_state
from prunelab.structures.surgery import compact_parameters

STATE = "state.safetensors"


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Prune to the schedule's last target, from the longest finished prefix; writes ``state.safetensors``.

    Metrics: the three ratios, parameters before and after, ``shots`` of the whole schedule. The shots that this
    stage ran itself are counted in ``cost.shots``; both lists are in the tables.
    """
    schedule = identity["schedule"]
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        method = build(context.runtime["method"], "method")
        tokens = calibrate.read(context.inputs["calibrate"].folder) if "calibrate" in context.inputs else None
        shots, start, first = _start(context)
        last_sites: list[Mapping[str, Any]] = list(shots.pop("sites", []))
        rows: list[dict[str, Any]] = list(shots["shots"])

        def on_shot(report: ShotReport, state: State) -> None:
            nonlocal last_sites
            row = {
                "shot": report.shot,
                "target": report.target,
                "achieved": report.achieved,
                "threshold": report.threshold,
            }
            rows.append(row)
            last_sites = [dict(site) for site in report.sites]
            context.log({"event": "shot", **row})
            if report.shot < len(schedule):  # the last one is the result itself
                save_state(state, context.work / f"shot-{report.shot}.safetensors")
                context.checkpoint(report.shot, {"shots": rows, "sites": last_sites})
                (context.work / f"shot-{report.shot - 1}.safetensors").unlink(missing_ok=True)

        state = prune(
            decoder, method, tokens, schedule, seed=identity["seed"],
            batch_size=setting.batch_size(context.runtime, tokens.shape[1]) if tokens is not None else 1,
            allocation=identity["allocation"], start=start, start_shot=first, on_shot=on_shot,
            progress=lambda row: context.progress(row["phase"], row["done"], row["total"]),
        )  # fmt: skip
        apply_state(decoder, state)
        integrity = check(decoder, state)
        save_state(state, context.outputs / STATE)
        metrics = {
            **ratios(state, decoder),
            "parameters/dense": decoder.n_parameters(),
            "parameters/compact": compact_parameters(state, decoder),
            "shots": len(schedule),
            **integrity,
        }
        n_shots = len(schedule) - first
        cost.tokens = tokens.numel() * n_shots if tokens is not None else 0
    return Result(metrics, {"shots": rows, "sites": last_sites}, {**cost.values(), "shots": n_shots})


def _start(context: Context) -> tuple[dict[str, Any], StateReader | None, int]:
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
    return {"shots": []}, None, 0
