"""Stage prune: a method on tokens, or on statistics of the dense model. Progress is a state per step: a shot, or a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunelab.calibration.tokens import load_tokens
from prunelab.config.build import build
from prunelab.config.domain import PSEUDO
from prunelab.config.domain import ROLE as DOMAIN
from prunelab.errors import ConfigError
from prunelab.evaluation.cost import metered
from prunelab.evaluation.integrity import check
from prunelab.evaluation.ratios import added_parameters, ratios
from prunelab.metric import OF_WEIGHTS, PARAMETERS, SHOTS
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder, load_tokenizer
from prunelab.passes.arguments import Spread
from prunelab.passes.between import Between
from prunelab.passes.shots import Correct, prune
from prunelab.passes.statistics import StatisticsFolder
from prunelab.passes.step import StepReport
from prunelab.pattern.table import pattern_of
from prunelab.reconstruction.whole import between_shots
from prunelab.stages import calibrate, setting
from prunelab.stages.measured import of_model, protocols
from prunelab.stages.part import STATE, Parts
from prunelab.stages.told import add_tokens
from prunelab.store.context import Context, Result
from prunelab.structures.state import State, open_state, save_state
from prunelab.structures.surgery import compact_parameters

Tables = dict[str, list[dict[str, Any]]]


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Prune to the schedule's last target, from the longest finished prefix; writes ``state.safetensors``.

    Metrics: the three ratios, parameters before and after, ``shots`` of the whole schedule, ``integrity/*``.
    The shots that this stage ran itself are counted in ``cost.shots``. Tables: ``shots``, ``sites``, and ``units/...`` of
    a method that says why units went (`prunelab.methods.base.ExplainingMethod`), ``between_shots`` of what was corrected
    before each shot but the first.
    Ranks of ``context.group`` share the calibration tokens; rank 0 writes and returns all this, the others nothing.
    """
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        tokens, others = _tokens(context, device), _domains(context, device)
        parts = _parts(context)
        before = len(parts.tables["shots"])
        state = _prune(identity, context, decoder, tokens, others, parts)
        if not context.leads:
            return Result({})
        metrics = measure(decoder, state, identity["schedule"])
        if (
            identity["schedule"] and metrics[OF_WEIGHTS] == 0
        ):  # a dense model under a method's name would win every table
            hint = "Rounded to whole structures, nothing went."
            raise ConfigError(
                "sparsity.ratio", identity["schedule"][-1], "half of one structure at least", hint
            )
        save_state(state, context.outputs / STATE)
        n_shots = len(parts.tables["shots"]) - before
        if "statistics" in context.inputs or tokens is None:  # nobody walks here
            walked = list[torch.Tensor]()
        else:
            parts_of_it = identity["method"].get(PSEUDO) is not None and not others
            walked = [tokens, *([tokens, *others] if others else []), *([tokens] * (3 * parts_of_it))]
        if tokens is not None:
            add_tokens(parts.tables, tokens, _tokenizer(context))
        cost.tokens = sum(text.numel() for text in walked) * n_shots
    how = dict.fromkeys(metrics, of_model(identity["model"]))
    return Result(metrics, parts.tables, {**cost.values(), "shots": n_shots}, protocols(how, metrics))


def measure(decoder: Decoder, state: State, schedule: Sequence[float]) -> dict[str, float]:
    """Return the metrics of a decoder that holds ``state``, pruned along ``schedule``; ModelError if it does not."""
    return {
        **ratios(state, decoder),
        PARAMETERS.at("dense"): decoder.n_parameters() - added_parameters(decoder),
        PARAMETERS.at("compact"): compact_parameters(state, decoder),
        SHOTS.name: len(schedule),
        **check(decoder, state),
    }


def between(identity: Mapping[str, Any], context: Context, decoder: Decoder, tables: Tables) -> Between:
    """Return how blocks are pruned one at a time, for the stage that repairs them in between.

    ``identity``: what a stage prune would have, in whose place this is; ``tables`` get its rows, once it is through.
    """
    tokens = _tokens(context, decoder.device)
    (ratio,) = identity["schedule"] or (0.0,)
    tables |= {name: tables.get(name, []) for name in ("shots", "sites")}

    def on_step(report: StepReport, state: State) -> None:
        _add_block(context, tables, report, ratio, len(decoder.blocks))

    return Between(
        build(context.runtime["method"], "method"), tokens, ratio, pattern_of(identity), identity["seed"],
        _batch_size(context, tokens), _spread(context), on_step,
        lambda row: context.progress(row["phase"], row["done"], row["total"]),
        _domains(context, decoder.device),
    )  # fmt: skip


def _add_block(context: Context, tables: Tables, report: StepReport, ratio: float, n_blocks: int) -> None:
    """Log a block that is pruned and add its layers' rows, and the shot's after the last block."""
    context.log(
        {"event": "pruned", "block": report.block, "ratio": report.target, "achieved": report.achieved}
    )
    sites = tables["sites"]
    sites += report.sites
    _extend(tables, report)
    if report.block == n_blocks - 1:
        removed, total = (sum(site[key] for site in sites) for key in ("removed", "total"))
        row = {"shot": report.shot, "target": ratio, "achieved": removed / total, "threshold": None}
        tables["shots"].append(row)


def _extend(tables: Tables, report: StepReport) -> None:
    """Add what a step says of its units to what those before said."""
    for name, rows in report.tables.items():
        tables.setdefault(name, []).extend(rows)


def _tokens(context: Context, device: torch.device | str) -> torch.Tensor | None:
    """Return the tokens that masks are chosen on; None where nothing is needed."""
    stage = context.inputs.get("calibrate")
    return None if stage is None else calibrate.read(stage.folder).to(device)


def _tokenizer(context: Context) -> Any | None:
    """Return the tokenizer that made the mask's tokens; None where they came as numbers."""
    made = load_tokens(context.inputs["calibrate"].folder / calibrate.TOKENS).source.get("tokenizer_digest")
    return None if made is None else load_tokenizer(context.runtime["model"])


def _domains(context: Context, device: torch.device | str) -> list[torch.Tensor]:
    """Return the tokens of other text that a method compares the mask's with, by the order of their names."""
    roles = sorted(role for role in context.inputs if role.startswith(f"{DOMAIN}/"))
    return [calibrate.read(context.inputs[role].folder).to(device) for role in roles]


def _batch_size(context: Context, tokens: torch.Tensor | None) -> int:
    return 1 if tokens is None else setting.batch_size(context.runtime, tokens.shape[1])


def _spread(context: Context) -> Spread:
    allocation = context.runtime["allocation"]
    return build(allocation, "allocation") if "_target_" in allocation else allocation["name"]


def _prune(
    identity: Mapping[str, Any], context: Context, decoder: Decoder, tokens: torch.Tensor | None,
    others: Sequence[torch.Tensor], parts: Parts,
) -> State:  # fmt: skip
    """Prune step by step, each on disk before the next begins."""
    shots, sites = parts.tables["shots"], parts.tables["sites"]
    pattern = pattern_of(identity)
    schedule = identity["schedule"]

    def on_step(report: StepReport, state: State) -> None:
        whole = report.block is None
        if whole:
            sites[:] = report.sites
            row = {
                "shot": report.shot, "target": report.target, "achieved": report.achieved, "threshold": report.threshold,
            }  # fmt: skip
            context.log({"event": "shot", **row})
            shots.append(row)
            _extend(parts.tables, report)
        else:
            _add_block(context, parts.tables, report, report.target, len(decoder.blocks))
        if not whole or report.shot < len(schedule):  # the last shot is the result itself
            parts.save(report.shot if report.block is None else report.block + 1, state, whole=whole)

    return prune(
        decoder, build(context.runtime["method"], "method"), tokens, schedule,
        pattern=pattern, seed=identity["seed"],
        batch_size=_batch_size(context, tokens), allocation=_spread(context),
        propagation=identity.get("propagation", "pruned"), stored=_stored(context),
        placement=setting.placement(context), start=parts.start, start_step=parts.done, on_step=on_step,
        progress=lambda row: context.progress(row["phase"], row["done"], row["total"]), group=setting.group(context),
        domains=others, correct=_correct(context, decoder, tokens, identity["seed"]),
    )  # fmt: skip


def _correct(context: Context, decoder: Decoder, tokens: torch.Tensor | None, seed: int) -> Correct | None:
    """Return what corrects the model between shots; None where nothing does."""
    option = context.runtime.get("between_shots")
    if option is None:
        return None
    return between_shots(
        decoder, build(option, "between_shots"), seed=seed, batch_size=_batch_size(context, tokens),
        group=setting.group(context), log=context.log,
    )  # fmt: skip


def _parts(context: Context) -> Parts:
    """Return this stage's own progress, else that of a finished prefix of its shots, else a beginning."""
    parts = Parts(context, {"shots": [], "sites": []})
    if parts.start is None and context.previous is not None:
        record = context.previous.record
        tables = {name: [dict(row) for row in rows] for name, rows in record.tables.items()}
        for row in tables["shots"]:
            context.log({"event": "shot", **row})
        parts.begin(open_state(context.previous.folder / STATE), len(tables["shots"]), tables)
    return parts


def _stored(context: Context) -> StatisticsFolder | None:
    statistics = context.inputs.get("statistics")
    if statistics is None:
        return None
    return StatisticsFolder(statistics.folder, statistics.record.identity["statistics"])
