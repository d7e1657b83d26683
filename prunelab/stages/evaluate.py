"""Stage evaluate: what pruning did to perplexity, to every block's output, on calibration and on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from prunelab.errors import DataError
from prunelab.evaluation.cost import metered
from prunelab.evaluation.integrity import check
from prunelab.evaluation.walk import measure
from prunelab.models.load import load_decoder
from prunelab.stages import calibrate, setting
from prunelab.stages.accuracy import accuracies
from prunelab.stages.part import STATE
from prunelab.store.context import Context, Result, steps
from prunelab.structures.state import apply_state, open_state

_FITTED = {"calibrate": "calibration", "reconstruction": "reconstruction"}  # role of the input -> stream


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Measure the pruned state in one walk beside the dense model.

    Metrics: ``ppl/<corpus>``, ``delta/ppl/<corpus>`` (pruned / dense - 1); after the last block ``error/<stream>``
    (relative) and ``mse/<stream>`` (per element); ``acc/<task>``, ``integrity/*``. Streams: ``calibration`` (the mask's tokens),
    ``reconstruction`` (a repair's own tokens, where they are others), ``held_out/<corpus>``. Table ``blocks``: both
    errors of each stream after each block.
    """
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        last = "reconstruct" if "reconstruct" in context.inputs else "prune"
        state = open_state(context.inputs[last].folder / STATE)
        texts, streams = {}, {}
        for role, found in context.inputs.items():
            if role.startswith("test/"):
                texts[role.removeprefix("test/")] = calibrate.read(found.folder)
            elif role.startswith("held_out/"):
                streams[role] = calibrate.read(found.folder)
            elif role in _FITTED:
                streams[_FITTED[role]] = calibrate.read(found.folder)[: identity["error_samples"]]
        check_apart(context)
        seq_len = max(text.shape[1] for text in [*texts.values(), *streams.values()])
        say = steps(context, "blocks and perplexity", len(decoder.blocks) * len(streams) + len(texts))
        size = setting.batch_size(context.runtime, seq_len)
        # in the model's own dtype, whatever walks that prune and repair store: a smaller one is not in this stage's key
        placement = replace(setting.placement(context), dtype=None)
        found = measure(decoder, partial(apply_state, decoder, state), texts, streams, size, say, placement)
        cost.tokens = sum(t.numel() for t in texts.values()) + 2 * sum(t.numel() for t in streams.values())
        scores = accuracies(identity, context, decoder, seq_len)
        integrity = check(decoder, state)
    dense = context.inputs["dense"].record.metrics
    metrics: dict[str, Any] = {f"ppl/{name}": value for name, value in found.perplexity.items()}
    metrics |= {
        f"delta/ppl/{name}": value / float(dense[f"ppl/{name}"]) - 1
        for name, value in found.perplexity.items()
    }
    metrics |= {f"error/{name}": value for name, value in found.errors.items()}
    metrics |= {f"mse/{name}": value for name, value in found.mse.items()} | scores | integrity
    blocks = [{key: row[key] for key in ("block", "stream", "error", "mse")} for row in found.blocks]
    for row in blocks:
        context.log({"event": "block", **row})
    context.log({"event": "evaluate", **metrics})
    return Result(metrics, {"blocks": blocks}, cost.values())


def check_apart(context: Context) -> None:
    """Raise DataError if a window that anything was fitted to is among those that judge, whatever the names are."""
    rows = {
        role: {row.numpy().tobytes() for row in calibrate.read(found.folder)}
        for role, found in context.inputs.items()
        if role in _FITTED or role.startswith(("test/", "held_out/"))
    }
    for fitted in (role for role in rows if role in _FITTED):
        for judge in (role for role in rows if role not in _FITTED):
            shared = len(rows[fitted] & rows[judge])
            if shared:
                raise DataError(
                    f"{shared} windows of {judge} are among those of {fitted}, which masks or repairs were fitted to: "
                    "such a number says nothing about other text. Take another corpus, or another split for one of both."
                )
