"""Stage reconstruct: what pruning kept is repaired, block by block or as a whole, on the mask's tokens or on others.

Masks are those of a stage prune, or are chosen block by block between repairs: then this stage is both, and its
identity holds what that of the stage prune would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prunelab.config.build import build
from prunelab.evaluation.cost import metered
from prunelab.evaluation.integrity import check
from prunelab.metric import REPAIR
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder
from prunelab.reconstruction.base import ModelRepair, Reconstruction, is_whole
from prunelab.reconstruction.walk import RepairReport, reconstruct, split_stopping
from prunelab.reconstruction.whole import repair_whole
from prunelab.stages import calibrate, prune, setting
from prunelab.stages.measured import of_model, of_text, protocols
from prunelab.stages.part import STATE, Parts, Tables
from prunelab.store.context import Context, Result
from prunelab.structures.state import State, open_state, save_state

_ROW = ("block", "unit", "error_before", "error", "mse_before", "mse")  # what the walk says of a block


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Repair what is pruned; writes ``state.safetensors``. Table ``repair``: error per block before and after.

    Metrics: ``integrity/*`` and, of every number that a repair gives for a unit, the largest as ``repair/<name>``.
    With masks chosen in between, metrics and tables of the stage prune as well. A repair of the whole model has no such
    table, and one number of each name; it logs its steps, which ranks of ``context.group`` share.

    With ``patience`` the last eighth of the sequences is kept from training and decides when it ends;
    text of other roles never comes in here.
    """
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        spec = build(context.runtime["reconstruction"], "reconstruction")
        source = "reconstruction" if "reconstruction" in context.inputs else "calibrate"
        tokens = calibrate.read(context.inputs[source].folder).to(device)
        if is_whole(spec):
            state, found = _whole(identity, context, decoder, tokens, spec)
            tables, pruning = {}, None
        else:
            state, tables, pruning = _blocks(identity, context, decoder, tokens, spec)
            found = _largest(tables["repair"])
        if not context.leads:
            return Result({})
        schedule = None if pruning is None else pruning["schedule"]
        metrics = check(decoder, state) if schedule is None else prune.measure(decoder, state, schedule)
        save_state(state, context.outputs / STATE)
        cost.tokens = tokens.numel()
    model = identity["model"]
    how = dict.fromkeys(metrics, of_model(model)) | dict.fromkeys(
        found, of_text(model, context.inputs[source])
    )
    metrics |= found
    return Result(metrics, tables, cost.values(), protocols(how, metrics))


def _blocks(
    identity: Mapping[str, Any], context: Context, decoder: Decoder, tokens: Tensor, spec: Reconstruction
) -> tuple[State, Tables, Mapping[str, Any] | None]:
    """Repair block by block; return the state, the tables, and how masks were chosen in between, None if before."""
    stopping = None
    if spec.early_stop:
        tokens, stopping = split_stopping(tokens)
    parts = Parts(context, {"repair": []})
    pruning = identity.get("prune")
    pruned = (
        open_state(context.inputs["prune"].folder / STATE)
        if pruning is None
        else prune.between(pruning, context, decoder, parts.tables)
    )

    def on_block(report: RepairReport, part: State) -> None:
        rows = [{**row, "unit": report.done, **report.fit} for row in report.blocks]
        parts.tables["repair"] += rows
        for row in rows:
            context.log({"event": "repair", **row})
        parts.save(report.done, part)

    state = reconstruct(
        decoder, pruned, tokens, spec, seed=identity["seed"],
        batch_size=setting.batch_size(context.runtime, tokens.shape[1]), stopping=stopping,
        placement=setting.placement(context, "ram"),
        start=parts.start, start_block=parts.done, on_block=on_block,
        progress=lambda row: context.progress(row["phase"], row["done"], row["total"]),
    )  # fmt: skip
    return state, parts.tables, pruning


def _whole(
    identity: Mapping[str, Any], context: Context, decoder: Decoder, tokens: Tensor, spec: ModelRepair
) -> tuple[State, dict[str, float]]:
    """Repair the model at once; return the state and the repair's numbers by the names of metrics."""
    parts = Parts(context, {})
    state, numbers = repair_whole(
        decoder, open_state(context.inputs["prune"].folder / STATE), tokens, spec, seed=identity["seed"],
        batch_size=setting.batch_size(context.runtime, tokens.shape[1]), done=parts.done, start=parts.start,
        save=lambda done, part: parts.save(done, part, whole=True), log=context.log,
        progress=lambda row: context.progress(row["phase"], row["done"], row["total"]),
        group=setting.group(context),
    )  # fmt: skip
    found = {REPAIR.at(name): value for name, value in numbers.items()}
    context.log({"event": "repair", **numbers})
    return state, found


def _largest(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the largest of every number that the repair itself gave, over all of the table's rows."""
    names = dict.fromkeys(name for row in rows for name in row if name not in _ROW)
    return {REPAIR.at(name): max(row[name] for row in rows if name in row) for name in names}
