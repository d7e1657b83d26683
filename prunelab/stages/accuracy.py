"""Zero-shot accuracy as metrics of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunelab.errors import ConfigError
from prunelab.evaluation.zero_shot import HARNESS, zero_shot
from prunelab.metric import ACC, ACC_NORM, MEAN_ACC, TASK_VERSION, Protocol
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_tokenizer
from prunelab.stages import setting
from prunelab.stages.measured import of_model
from prunelab.store.context import Context


def accuracies(
    identity: Mapping[str, Any], context: Context, decoder: Decoder, seq_len: int
) -> tuple[dict[str, Any], dict[str, Protocol]]:
    """Return ``acc/<task>``, ``acc_norm/<task>``, ``acc/mean`` and ``task_version/<task>``, and how each was
    measured; nothing without tasks.

    The context is ``seq_len``, that of the perplexity, and never less than what a short task needs.
    """
    tasks = identity.get("tasks")
    if not tasks:
        return {}, {}
    if context.runtime["model"]["source"] == "random":
        raise ConfigError("evaluation.tasks", tasks, "[] with model=random", "It has no tokenizer.")
    length = min(max(seq_len, _LEAST), decoder.max_len)
    context.progress("zero-shot tasks", 0, len(tasks))
    found = zero_shot(
        decoder, load_tokenizer(context.runtime["model"]), tasks, limit=identity["task_limit"], seq_len=length,
        batch_size=setting.batch_size(context.runtime, length),
    )  # fmt: skip
    metrics: dict[str, Any] = {}
    protocols: dict[str, Protocol] = {}
    measured = replace(
        of_model(identity["model"]), context=length, harness=HARNESS, documents=identity["task_limit"]
    )
    for name, score in found.items():
        metrics[ACC.at(name)] = score.acc
        if score.acc_norm is not None:
            metrics[ACC_NORM.at(name)] = score.acc_norm
        metrics[TASK_VERSION.at(name)] = score.version
        own = replace(measured, task=f"{name} {score.version}")
        protocols |= {row.at(name): own for row in (ACC, ACC_NORM, TASK_VERSION)}
    metrics[MEAN_ACC] = sum(score.acc for score in found.values()) / len(found)
    protocols[MEAN_ACC] = replace(measured, task=", ".join(f"{name} {found[name].version}" for name in found))
    return metrics, protocols


_LEAST = 256  # tokens; documents of the usual tasks are shorter
