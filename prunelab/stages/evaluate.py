"""Stage evaluate: what pruning did to perplexity, to every block's output, on calibration and on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from prunelab.config.domain import ROLE as DOMAIN
from prunelab.errors import DataError
from prunelab.evaluation.cost import metered
from prunelab.evaluation.integrity import check
from prunelab.evaluation.walk import measure
from prunelab.metric import (
    CALIBRATION,
    CHANGE,
    ERROR,
    HELD_OUT,
    KL,
    LOSS_CHANGE,
    MSE,
    PPL,
    RECONSTRUCTION,
)
from prunelab.models.load import load_decoder
from prunelab.stages import calibrate, setting
from prunelab.stages.accuracy import accuracies
from prunelab.stages.measured import measure_own, of_model, of_text, on_texts, protocols
from prunelab.stages.part import STATE
from prunelab.store.context import Context, Result, steps
from prunelab.structures.state import apply_state, open_state

_FITTED = {"calibrate": CALIBRATION, "reconstruction": RECONSTRUCTION}  # role of the input -> stream


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Measure the pruned state in one walk beside the dense model.

    Metrics: ``ppl/<corpus>``, ``delta/ppl/<corpus>`` (pruned / dense - 1); after the last block ``error/<stream>``
    (relative) and ``mse/<stream>`` (per element); of the next token there ``kl/<stream>`` (dense from pruned) and
    ``delta/loss/<stream>`` (pruned - dense), in nats; ``acc/<task>``, ``integrity/*``, and those from outside the package.
    Streams: ``calibration`` (the mask's tokens), ``reconstruction`` (a repair's own tokens, where they are others),
    ``held_out/<corpus>``. Table ``blocks``: both errors of each stream after each block.
    """
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        last = "reconstruct" if "reconstruct" in context.inputs else "prune"
        state = open_state(context.inputs[last].folder / STATE)
        tests, judged = {}, {}
        for role, given in context.inputs.items():
            if role.startswith("test/"):
                tests[role.removeprefix("test/")] = given
            elif role.startswith(f"{HELD_OUT}/"):
                judged[role] = given
            elif role in _FITTED:
                judged[_FITTED[role]] = given
        windows = identity["error_samples"]
        texts = {name: calibrate.read(given.folder) for name, given in tests.items()}
        streams = {name: calibrate.read(given.folder)[:windows] for name, given in judged.items()}
        check_apart(context)
        seq_len = max(text.shape[1] for text in [*texts.values(), *streams.values()])
        say = steps(context, "blocks and perplexity", len(decoder.blocks) * len(streams) + len(texts))
        size = setting.batch_size(context.runtime, seq_len)
        # in the model's own dtype, whatever walks that prune and repair store: a smaller one is not in this stage's key
        placement = replace(setting.placement(context), dtype=None)
        found = measure(decoder, partial(apply_state, decoder, state), texts, streams, size, say, placement)
        cost.tokens = sum(t.numel() for t in texts.values()) + 2 * sum(t.numel() for t in streams.values())
        scores, how = accuracies(identity, context, decoder, seq_len)
        # last, and the weights are read back after them: what is not ours shall move no other number
        own, rows = measure_own(identity, decoder, texts, size, context.log)
        integrity = check(decoder, state)
    dense = context.inputs["dense"].record.metrics
    metrics: dict[str, Any] = {PPL.at(name): value for name, value in found.perplexity.items()}
    metrics |= {
        CHANGE.at(name): value / float(dense[PPL.at(name)]) - 1 for name, value in found.perplexity.items()
    }
    metrics |= {ERROR.at(name): value for name, value in found.errors.items()}
    metrics |= {KL.at(name): apart.kl for name, apart in found.divergences.items()}
    metrics |= {LOSS_CHANGE.at(name): apart.loss_change for name, apart in found.divergences.items()}
    metrics |= {MSE.at(name): value for name, value in found.mse.items()} | own | scores | integrity
    how |= on_texts(identity, tests)
    for name, given in judged.items():
        of_stream = (ERROR.at(name), MSE.at(name), KL.at(name), LOSS_CHANGE.at(name))
        how |= dict.fromkeys(of_stream, of_text(identity["model"], given, windows))
    how |= dict.fromkeys(integrity, of_model(identity["model"]))
    blocks = [{key: row[key] for key in ("block", "stream", "error", "mse")} for row in found.blocks]
    for row in blocks:
        context.log({"event": "block", **row})
    context.log({"event": "evaluate", **metrics})
    return Result(metrics, {"blocks": blocks}, cost.values(), protocols(how, metrics), rows)


def check_apart(context: Context) -> None:
    """Raise DataError if a window that anything was fitted to is among those that judge, whatever the names are."""
    rows = {
        role: {row.numpy().tobytes() for row in calibrate.read(found.folder)}
        for role, found in context.inputs.items()
        if _is_fitted(role) or role.startswith(("test/", f"{HELD_OUT}/"))
    }
    for fitted in (role for role in rows if _is_fitted(role)):
        for judge in (role for role in rows if not _is_fitted(role)):
            shared = len(rows[fitted] & rows[judge])
            if shared:
                raise DataError(
                    f"{shared} windows of {judge} are among those of {fitted}, which masks or repairs were fitted to: "
                    "such a number says nothing about other text. Take another corpus, or another split for one of both."
                )


def _is_fitted(role: str) -> bool:
    return role in _FITTED or role.startswith(f"{DOMAIN}/")
