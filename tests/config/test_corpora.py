"""Corpora by name or by path, and that each can serve its role."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunelab.config.check import check_trial
from prunelab.config.compose import Composer
from prunelab.launch.command.study import plan_study

MASK = ["calibration=tokens", "calibration.n_samples=8", "calibration.seq_len=32"]
ALONE = ["evaluation.held_out=[]", "evaluation.seq_len=32"]
DIVIDED = "calibration.split={mask:train,held_out:validation,test:test}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("x.npy", "other/x.npy", "short.npy", "austen.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shape = (6, 16) if name == "short.npy" else (64, 128)
        np.save(tmp_path / name, np.random.RandomState(len(name)).randint(3, 2000, shape))
    for name in ("y.txt", "z a.txt"):
        (tmp_path / name).write_text("a few words " * 999)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(composer: Composer, *words: str):
    config, corpora, errors = check_trial(composer.trial(list(words)), composer)
    return config, corpora, [str(error) for error in errors]


def test_a_path_is_a_corpus(composer: Composer, place: Path) -> None:
    words = [
        f"evaluation.corpora=[{place}/x.npy,other/x.npy,austen]",
        "evaluation.held_out=[y.txt,austen.npy,'z a.txt']",
    ]
    config, corpora, errors = check(composer, *words)
    assert not errors
    assert config["evaluation"]["corpora"] == ["x", "other-x", "austen"]
    assert config["evaluation"]["held_out"] == ["y", f"{place.name}-austen", "z-a"]
    assert corpora["other-x"]["path"] == str(place / "other" / "x.npy")
    assert (corpora["y"]["source"], corpora["x"]["source"], corpora["x"]["split"]) == (
        "text",
        "tokens",
        "all",
    )
    roles = plan_study(composer, [[f"paths.root={place}", *words]], []).trials[0].stages
    assert {"test/x", "test/other-x", "held_out/y"} <= set(roles)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluation.corpora=[/nowhere/x.npy]"], ["calibration/x.path='/nowhere/x.npy'", "No file at"]),
        (["evaluation.corpora=[austn]"], ["evaluation.corpora='austn'", "Did you mean 'austen'?", "paths of files"]),
        ([*MASK, "calibration.path=x.npy", "evaluation.corpora=[tokens]"],
         ["evaluation.corpora='tokens': allowed is text that nothing was fitted to", "calibration fits to the same text"]),
        ([*MASK, "calibration.path=x.npy", "evaluation.corpora=[x.npy]"], ["evaluation.corpora='x'", "nothing was fitted to"]),
        ([*MASK, "calibration.path=x.npy", "evaluation.held_out=[x.npy]"],
         ["evaluation.held_out='x'", "nothing was fitted to"]),
        (["calibration.split=all"], ["evaluation.corpora='austen'", "nothing was fitted to"]),
        (["calibration.split={mask:test,held_out:validation,test:train}"], ["evaluation.corpora='austen'", "nothing was"]),
        ([*MASK, "calibration.path=x.npy", "calibration.n_samples=65"],
         ["calibration.n_samples=65", "at most 64, the rows of x.npy"]),
        ([*MASK, "calibration.path=x.npy", "calibration.seq_len=129"],
         ["calibration.seq_len=129", "at most 128, the length of a row"]),
        ([*MASK, "calibration.path=x.npy", "calibration.n_samples=60", DIVIDED],
         ["calibration.n_samples=60", "at most 51", "its split 'train'", "64 in all"]),
        (["evaluation.held_out=[short.npy]", "evaluation.seq_len=16"],
         ["evaluation.error_samples=8", "at most 6, the rows of short.npy"]),
        (["evaluation.corpora=[short.npy]"], ["evaluation.seq_len=128", "at most 16, the length of a row of short.npy"]),
    ],
)  # fmt: skip
def test_what_cannot_serve_its_role_is_told(
    composer: Composer, place: Path, words: list[str], said: list[str]
) -> None:
    del place
    _, _, errors = check(composer, *words)
    assert errors
    for piece in said:
        assert any(piece in error for error in errors), errors


def test_a_file_that_is_divided_serves_every_role(composer: Composer, place: Path) -> None:
    del place
    words = [
        *MASK,
        "calibration.path=x.npy",
        DIVIDED,
        "evaluation.corpora=[tokens]",
        "evaluation.held_out=[tokens]",
    ]
    assert not check(composer, *words, "evaluation.error_samples=4")[2]
