"""A trial made of its classes and back: nothing is gained, lost or moved on the way."""

from __future__ import annotations

import json

import pytest

from prunelab.config.check import check_trial
from prunelab.config.compose import Composer, Config
from prunelab.config.trial import group_of, plain, typed, typed_corpora

EXTENSIONS = "+stages={pulse: {_target_: mine.Pulse, repeats: 3}}"
METRICS = "+evaluation.metrics.top5={_target_: mine.TopK, k: 5}"


def checked(composer: Composer, *words: str) -> tuple[Config, dict[str, Config]]:
    config, corpora, _ = check_trial(composer.trial(list(words)), composer)
    return config, corpora


@pytest.mark.parametrize(
    "words",
    [
        ["method=surgeon", "tracking=wandb"],
        ["method=wanda", "sparsity=2of4", "sparsity.ratio=null", "reconstruction=layer"],
        ["method=sparsegpt", "sparsity=unstructured", "allocation=owl", "reconstruction_data=self_generated"],
        ["method=wanda", "sparsity=unstructured", "calibration.split={mask: train, test: test}"],
        ["method=magnitude", EXTENSIONS, METRICS],
    ],
    ids=" ".join,
)
def test_a_trial_comes_back_as_it_was(composer: Composer, words: list[str]) -> None:
    config, corpora = checked(composer, *words)
    # as text: the order of keys counts, names of trials follow it
    assert json.dumps(plain(typed(config))) == json.dumps(config)
    for name, corpus in typed_corpora(corpora).items():
        assert json.dumps(plain(corpus)) == json.dumps(corpora[name])


def test_a_key_that_is_absent_is_null_as_an_attribute_and_stays_absent(composer: Composer) -> None:
    text = typed(checked(composer, "method=magnitude", "calibration=austen")[0]).calibration
    assert text.path is None
    assert "path" not in plain(text)
    assert "path" in plain(group_of(type(text), {**plain(text), "path": None}))


def test_options_of_classes_know_their_target(composer: Composer) -> None:
    trial = typed(checked(composer, "method=magnitude", "reconstruction=none", EXTENSIONS, METRICS)[0])
    assert (trial.method.name, trial.method.target) == ("magnitude", trial.method.fields["_target_"])
    assert (trial.reconstruction.name, trial.reconstruction.target) == ("none", None)
    assert (trial.stages["pulse"].target, trial.stages["pulse"].fields["repeats"]) == ("mine.Pulse", 3)
    assert trial.evaluation.metrics["top5"].name == "top5"


def test_other_keys_than_its_own_are_refused(composer: Composer) -> None:
    config, _ = checked(composer, "method=magnitude")
    with pytest.raises(TypeError, match="depth"):
        typed({**config, "model": {**config["model"], "depth": 3}})
    with pytest.raises(TypeError, match="seq_len"):
        typed({**config, "evaluation": {k: v for k, v in config["evaluation"].items() if k != "seq_len"}})
    with pytest.raises(KeyError, match="runtime"):
        typed({key: value for key, value in config.items() if key != "runtime"})
