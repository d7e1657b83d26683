"""Zero-shot accuracy by the stock lm-evaluation-harness, on the model in memory.

A task is one of the harness's own by name (its data come from the hub at run time), or
``continuation_<corpus>``: documents made of the test split of an embedded corpus, so that accuracy can be
studied where no hub is. Such a document is 48 consecutive words; of four spans of 12 words the one that
really follows has to be the likeliest. Chance is 0.25.

``acc`` compares sums of log-likelihoods, ``acc_norm`` divides them by the choice's length in characters; both
are kept, since papers print either.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunelab.calibration.corpus import load_corpus
from prunelab.errors import DataError
from prunelab.models.decoder import Decoder

PREFIX = "continuation_"
HARNESS = f"lm-eval {importlib.metadata.version('lm_eval')}"
VERSION = 1  # of the continuation tasks: raise it when their documents change
_CONTEXT, _CHOICE, _CHOICES, _DOCUMENTS = 48, 12, 4, 200  # words, words, spans, documents


@dataclass(frozen=True)
class Score:
    """Of one task: accuracies 0 to 1, documents, and the version of the task's definition."""

    acc: float
    acc_norm: float | None
    documents: int
    version: str


def zero_shot(
    decoder: Decoder,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None,
    seq_len: int,
    batch_size: int,
) -> dict[str, Score]:
    """Return the score of every task, 0-shot, on at most ``limit`` documents each (None: all).

    ``seq_len``: tokens of context the model gets. Raises DataError for a task whose data cannot be reached.
    """
    import lm_eval  # seconds that only this measurement owes
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    evaluate: Any = lm_eval.simple_evaluate  # decorators hide the arguments of both from type checkers
    build: Any = HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = [continuation_task(name.removeprefix(PREFIX)) for name in tasks if name.startswith(PREFIX)]
    others = [name for name in tasks if not name.startswith(PREFIX)]
    model = build(
        pretrained=decoder.model, tokenizer=tokenizer, batch_size=batch_size, max_length=seq_len,
        device=str(decoder.device),
    )  # fmt: skip
    try:
        found = evaluate(
            model, tasks=[*own, *others], num_fewshot=0, limit=limit, bootstrap_iters=0, log_samples=False,
            task_manager=TaskManager(include_defaults=bool(others)),
        )  # fmt: skip
    except (OSError, ConnectionError) as error:
        raise DataError(
            f"data of {', '.join(others) or 'the tasks'} cannot be reached: {' '.join(str(error).split())[:200]} "
            f"Run once where the hub answers, or take {PREFIX}austen and the like, which need none."
        ) from error
    assert found is not None
    return {name: _score(found, name) for name in tasks}


def _score(found: Mapping[str, Any], name: str) -> Score:
    results = found["results"].get(name, {})
    if "acc,none" not in results:
        has = sorted(key.partition(",")[0] for key in results if "," in key)
        raise DataError(f"task {name} gives no accuracy ({', '.join(has) or 'nothing'}); take one that does.")
    norm = results.get("acc_norm,none")
    count = found["n-samples"].get(name, {}).get("effective", 0)
    return Score(
        float(results["acc,none"]), None if norm is None else float(norm), int(count),
        str(found["versions"].get(name)),
    )  # fmt: skip


def continuation_task(corpus: str) -> dict[str, Any]:
    """Return the harness's definition of the task ``continuation_<corpus>``; DataError for an unknown corpus."""
    return {
        "task": f"{PREFIX}{corpus}",
        "custom_dataset": _dataset(corpus),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": VERSION},
    }


def continuation_documents(text: str, count: int = _DOCUMENTS) -> list[dict[str, Any]]:
    """Return documents {text, choices, answer} of consecutive, disjoint stretches of ``text``.

    Wrong choices are spans of other stretches, drawn by a fixed seed; the same text gives the same documents.
    """
    words, stretch = text.split(), _CONTEXT + _CHOICE
    count = min(count, len(words) // stretch)
    if count < _CHOICES:
        raise DataError(f"{len(words)} words are too few for {_CHOICES} documents of {stretch}.")
    gap = len(words) // count
    spans = [words[i * gap : i * gap + stretch] for i in range(count)]
    ends = [" ".join(span[_CONTEXT:]) for span in spans]
    draw, documents = np.random.default_rng(0), []
    for number, span in enumerate(spans):
        others = draw.choice(count - 1, _CHOICES - 1, replace=False)
        wrong = [ends[other + (other >= number)] for other in others]
        answer = int(draw.integers(_CHOICES))
        choices = [*wrong[:answer], ends[number], *wrong[answer:]]
        documents.append({"text": " ".join(span[:_CONTEXT]), "choices": choices, "answer": answer})
    return documents


def _dataset(corpus: str) -> Callable[..., dict[str, Any]]:
    spec = {"name": corpus, "source": "embedded", "id": corpus, "digest": None}
    documents = continuation_documents(" ".join(load_corpus(spec, "test")))

    def make(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(documents)}

    return make
