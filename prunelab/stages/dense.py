"""Stage dense: perplexity and zero-shot accuracy of the unpruned model, once per model and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunelab.evaluation.cost import metered
from prunelab.evaluation.walk import measure
from prunelab.models.load import load_decoder
from prunelab.stages import calibrate, setting
from prunelab.stages.accuracy import accuracies
from prunelab.store.context import Context, Result, steps


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Measure perplexity on every test corpus; metrics ``ppl/<corpus>``, ``acc/<task>`` and ``parameters/dense``."""
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        texts = {
            role.partition("/")[2]: calibrate.read(found.folder)
            for role, found in context.inputs.items()
            if role.startswith("test/")
        }
        seq_len = max(text.shape[1] for text in texts.values())
        say = steps(context, "perplexity", len(texts))
        found = measure(decoder, None, texts, {}, setting.batch_size(context.runtime, seq_len), say)
        cost.tokens = sum(text.numel() for text in texts.values())
        metrics: dict[str, Any] = {f"ppl/{name}": value for name, value in found.perplexity.items()}
        metrics |= accuracies(identity, context, decoder, seq_len)
    context.log({"event": "dense", **metrics})
    metrics["parameters/dense"] = decoder.n_parameters()
    return Result(metrics, cost=cost.values())
