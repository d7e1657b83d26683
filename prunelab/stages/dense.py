"""Stage dense: perplexity and zero-shot accuracy of the unpruned model, once per model and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunelab.evaluation.cost import metered
from prunelab.evaluation.walk import measure
from prunelab.metric import PARAMETERS, PPL
from prunelab.models.load import load_decoder
from prunelab.stages import calibrate, setting
from prunelab.stages.accuracy import accuracies
from prunelab.stages.measured import measure_own, of_model, on_texts, protocols
from prunelab.store.context import Context, Result, steps

DENSE = "dense"  # the event, and which model the parameters are of


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Measure perplexity on every test corpus; metrics ``ppl/<corpus>``, ``acc/<task>``, those from
    outside the package, and ``parameters/dense``."""
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        given = {
            role.partition("/")[2]: text for role, text in context.inputs.items() if role.startswith("test/")
        }
        texts = {name: calibrate.read(text.folder) for name, text in given.items()}
        seq_len = max(text.shape[1] for text in texts.values())
        say = steps(context, "perplexity", len(texts))
        size = setting.batch_size(context.runtime, seq_len)
        found = measure(decoder, None, texts, {}, size, say)
        cost.tokens = sum(text.numel() for text in texts.values())
        metrics: dict[str, Any] = {PPL.at(name): value for name, value in found.perplexity.items()}
        scores, how = accuracies(identity, context, decoder, seq_len)
        own, rows = measure_own(identity, decoder, texts, size, context.log)
        metrics |= own | scores
    context.log({"event": DENSE, **metrics})
    metrics[PARAMETERS.at(DENSE)] = decoder.n_parameters()
    how |= {PARAMETERS.at(DENSE): of_model(identity["model"])} | on_texts(identity, given)
    return Result(metrics, cost=cost.values(), protocols=protocols(how, metrics), rows=rows)
