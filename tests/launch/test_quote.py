"""Values that Hydra's grammar cannot read are answered with the form that works."""

from __future__ import annotations

import shlex

import pytest

from prunelab.config.hydra_inside import parse
from prunelab.launch.command.entry import run
from prunelab.launch.command.quote import unreadable


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("calibration.path=/data/x=y.txt", "/data/x=y.txt"),
        ("model.id=~/m", "~/m"),
        ("study=a~b", "a~b"),
        ("calibration.name=it's=1", "it's=1"),
        ("tracking.tags=[a=b,c]", ["a=b", "c"]),
        ("evaluation.corpora=[~/x.npy]", ["~/x.npy"]),
    ],
)
def test_the_quoted_form_is_what_was_meant(word: str, values: object) -> None:
    error = unreadable(["method=wanda", word, "-m"])
    assert error is not None
    assert (error.key, error.value) == tuple(word.split("=", 1))
    (quoted,) = shlex.split(error.hint.partition(": ")[2])
    assert parse(quoted).value() == values


def test_a_sweep_keeps_its_items() -> None:
    error = unreadable(["model.id=~/a,/b,~/c"])
    assert error is not None
    (quoted,) = shlex.split(error.hint.partition(": ")[2])
    assert parse(quoted).is_sweep_override()


def test_words_that_read_or_cannot_be_mended_are_left_to_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert unreadable(["method=wanda", "seed=1,2", "sparsity.ratio=range(0.1,0.5,0.1)", "-m"]) is None
    assert run(["prunelab", "model.id=~/m", "model=local"]) == 1
    text = capsys.readouterr().err
    assert "model.id='~/m': allowed is" in text
    assert "Traceback" not in text
