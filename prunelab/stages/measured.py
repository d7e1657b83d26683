"""Metrics of classes from outside the package, and the protocol that a stage writes beside each of its numbers.

A metric of one's own is one file and one line (or an option of ``evaluation`` that sets ``metrics``)::

    @dataclass(frozen=True)
    class TopK:
        k: Annotated[int, "x >= 1"]
        title = "next token among the k likeliest"  # literals that planning and the report read: what it is called,
        better = "higher"  # which direction is good (lower, higher, neither),
        form = "percent"  # how it is written: a key of prunelab.metric.FORMS

        def measure(self, decoder, tokens, batch_size) -> float:
            logits = decoder.model(tokens[:batch_size]).logits
            ...

    # python -m prunelab '+evaluation.metrics.top5={_target_: mine.TopK, k: 5}'

It is measured on every test corpus, of the dense model and of each trial's, and shown as ``top5/<corpus>`` beside
perplexity: in the tables, the CSV files and W&B, under a key of which class and fields are part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

from torch import Tensor

from prunelab.calibration.tokens import load_tokens
from prunelab.config.build import build
from prunelab.errors import StageError
from prunelab.metric import CHANGE, PPL, Metric
from prunelab.metric import Protocol as Measured
from prunelab.models.decoder import Decoder
from prunelab.stages.calibrate import TOKENS
from prunelab.store.context import Input


class OwnMetric(Protocol):
    """The class that ``_target_`` names, built with the option's other values."""

    title: str
    better: str
    form: str

    def measure(self, decoder: Decoder, tokens: Tensor, batch_size: int) -> float:
        """Return one number for ``tokens`` (n, length) int64; equal models and tokens have to give equal numbers."""
        ...


def measure_own(
    identity: Mapping[str, Any],
    decoder: Decoder,
    texts: Mapping[str, Tensor],
    batch_size: int,
    say: Callable[[Mapping[str, Any]], None],
) -> tuple[dict[str, float], dict[str, Mapping[str, Any]]]:
    """Return the numbers ``<name>/<corpus>`` of the identity's metrics from outside, and their rows as plain data.

    ``say`` hears of each number. Raises StageError if a class returns something else than a number.
    """
    numbers, rows = {}, {}
    for name, option in identity.get("metrics", {}).items():
        own: OwnMetric = build(option, f"evaluation.metrics.{name}")
        metric = Metric(name, own.title, own.better, getattr(own, "unit", ""), own.form, of=PPL.of)  # type: ignore[arg-type]
        rows[name] = asdict(metric)
        for corpus, tokens in texts.items():
            value = own.measure(decoder, tokens, batch_size)
            try:
                numbers[metric.at(corpus)] = float(value)
            except (TypeError, ValueError) as error:
                raise StageError(
                    f"evaluation.metrics.{name}: measure returned {type(value).__name__}; a number is wanted."
                ) from error
            say({"event": name, "corpus": corpus, "value": numbers[metric.at(corpus)]})
    return numbers, rows


def of_model(model: Mapping[str, Any]) -> Measured:
    """Return the protocol of a number that a model has by itself: ``model`` as it stands in a stage's identity."""
    name = model["id"] or "local"
    version = (model["revision"] or model["digest"] or "")[:12]
    told = f"{name}@{version}" if version else str(name)
    return Measured("", told + (f" ({model['family'][:12]})" if model.get("family") else ""), model["dtype"])


def of_text(model: Mapping[str, Any], found: Input, windows: int | None = None) -> Measured:
    """Return the protocol of a number that was measured on a token set, on its first ``windows`` (None: all)."""
    tokens = load_tokens(found.folder / TOKENS)
    source, (n, length) = tokens.source, tokens.tokens.shape
    local = source.get("source") in ("text", "tokens")  # where a file lay is not what was in it
    return replace(
        of_model(model),
        tokenizer=source.get("tokenizer_digest"),
        text=str(source["name"] if local or not source.get("id") else source["id"]),
        revision=source.get("revision"),
        corpus=source.get("corpus_digest"),
        split=source.get("split") or tokens.role,
        joiner=source.get("joiner"),
        sampler=source.get("sampler"),
        context=length,
        windows=n if windows is None else min(n, windows),
        tokens=tokens.digest[:16],
    )


def on_texts(identity: Mapping[str, Any], texts: Mapping[str, Input]) -> dict[str, Measured]:
    """Return the protocols of what is measured on whole test texts, by corpus: perplexity, its change, metrics from outside."""
    own = identity.get("metrics", {})
    found = {}
    for corpus, given in texts.items():
        how = of_text(identity["model"], given)
        found |= {row.at(corpus): how for row in (PPL, CHANGE)}
        for name, option in own.items():
            definition = json.dumps(option, sort_keys=True)
            found[Metric(name, "").at(corpus)] = replace(how, definition=definition)
    return found


def protocols(measured: Mapping[str, Measured], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the protocol of each number in ``names`` that ``measured`` knows, by the number's name."""
    return {name: replace(measured[name], metric=name).plain() for name in names if name in measured}
