"""Zero-shot accuracy: the documents, the harness on a model in memory, names of tasks."""

from __future__ import annotations

import pytest
import torch

import prunelab
from prunelab.calibration.corpus import load_corpus
from prunelab.config.tasks import check_tasks, harness_tasks
from prunelab.errors import DataError
from prunelab.evaluation.zero_shot import continuation_documents, continuation_task, zero_shot
from prunelab.models.stream import advance, head, open_stream

AUSTEN = {"name": "austen", "source": "embedded", "id": "austen", "digest": None}


def test_documents_are_text_and_what_follows_it() -> None:
    text = " ".join(load_corpus(AUSTEN, "test"))
    words = " ".join(text.split())
    documents = continuation_documents(text, 30)
    assert documents == continuation_documents(text, 30)
    for document in documents:
        assert f"{document['text']} {document['choices'][document['answer']]}" in words
        assert len(set(document["choices"])) == 4
        assert all(len(choice.split()) == 12 for choice in document["choices"])
    assert {document["answer"] for document in documents} == {0, 1, 2, 3}


def test_short_texts_and_unknown_corpora_are_named() -> None:
    with pytest.raises(DataError, match="too few"):
        continuation_documents("a few words")
    with pytest.raises(Exception, match="Did you mean 'austen'"):
        continuation_task("austin")


def test_scores_are_those_of_summed_log_likelihoods() -> None:
    model = prunelab.load_model("embedded_llama")
    limit = 12
    found = zero_shot(
        model.decoder, model.tokenizer, ["continuation_austen"], limit=limit, seq_len=256, batch_size=8
    )
    documents = continuation_documents(" ".join(load_corpus(AUSTEN, "test")))[:limit]
    right = right_norm = 0
    for document in documents:
        sums = [_log_likelihood(model, document["text"], f" {choice}") for choice in document["choices"]]
        lengths = [len(choice) for choice in document["choices"]]
        right += max(range(4), key=lambda i: sums[i]) == document["answer"]
        right_norm += max(range(4), key=lambda i: sums[i] / lengths[i]) == document["answer"]
    score = found["continuation_austen"]
    assert (score.acc, score.acc_norm) == (right / limit, right_norm / limit)
    assert (score.documents, score.version) == (limit, "1")


def _log_likelihood(model: prunelab.Model, context: str, choice: str) -> float:
    """By the walk over blocks: nothing of the harness takes part."""
    whole, start = (model.tokenizer(text)["input_ids"] for text in (context + choice, context))
    tokens = torch.tensor([whole])
    stream = open_stream(model.decoder, tokens, 1)
    for index in range(len(model.decoder.blocks)):
        advance(model.decoder, index, stream)
    logits = head(model.decoder, stream.read(slice(None)), tokens)[0, :-1].double().log_softmax(-1)
    chosen = logits.gather(1, tokens[0, 1:, None])[:, 0]
    return float(chosen[len(start) - 1 :].sum())


def test_names_are_checked_without_the_harness() -> None:
    assert {"arc_easy", "piqa", "hellaswag", "boolq"} <= harness_tasks()
    assert not list(check_tasks(["arc_easy", "continuation_kjv"], ["austen", "kjv"]))
    (error,) = check_tasks(["arc_esay"], ["austen"])
    assert "Did you mean 'arc_easy'?" in str(error)
    (error,) = check_tasks(["continuation_austn"], ["austen", "kjv"])
    assert "Did you mean 'continuation_austen'?" in str(error)
