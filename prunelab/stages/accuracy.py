"""Zero-shot accuracy as metrics of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunelab.errors import ConfigError
from prunelab.evaluation.zero_shot import zero_shot
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_tokenizer
from prunelab.stages import setting
from prunelab.store.context import Context


def accuracies(
    identity: Mapping[str, Any], context: Context, decoder: Decoder, seq_len: int
) -> dict[str, Any]:
    """Return ``acc/<task>``, ``acc_norm/<task>``, ``acc/mean`` and ``task_version/<task>``; nothing without tasks.

    The context is ``seq_len``, that of the perplexity, and never less than what a short task needs.
    """
    tasks = identity.get("tasks")
    if not tasks:
        return {}
    if context.runtime["model"]["source"] == "random":
        raise ConfigError("evaluation.tasks", tasks, "[] with model=random", "It has no tokenizer.")
    length = min(max(seq_len, _LEAST), decoder.max_len)
    context.progress("zero-shot tasks", 0, len(tasks))
    found = zero_shot(
        decoder, load_tokenizer(context.runtime["model"]), tasks, limit=identity["task_limit"], seq_len=length,
        batch_size=setting.batch_size(context.runtime, length),
    )  # fmt: skip
    metrics: dict[str, Any] = {}
    for name, score in found.items():
        metrics[f"acc/{name}"] = score.acc
        if score.acc_norm is not None:
            metrics[f"acc_norm/{name}"] = score.acc_norm
        metrics[f"task_version/{name}"] = score.version
    metrics["acc/mean"] = sum(score.acc for score in found.values()) / len(found)
    return metrics


_LEAST = 256  # tokens; documents of the usual tasks are shorter
