"""Crossing options as plain data gives what Hydra composes, and the YAML files are right."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from prunelab.config import hydra_inside
from prunelab.config.build import build
from prunelab.config.check import check_trial, method_source
from prunelab.config.compose import Composer
from prunelab.config.place import conf_folder
from prunelab.errors import ConfigError

METHODS = sorted(path.stem for path in (conf_folder() / "method").glob("*.yaml"))


def by_hydra(loader: hydra_inside.Loader, overrides: list[str]) -> dict:
    config = hydra_inside.compose(loader, "config", overrides)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("overlay", [[], ["+exp=surgeon_sweep"]])
def test_equals_hydra(loader: hydra_inside.Loader, composer: Composer, overlay: list[str]) -> None:
    crossed = itertools.product(METHODS[:3], ["austen", "wikitext2"], ["sparsity.ratio=0.1", "seed=3"])
    for method, corpus, value in crossed:
        overrides = [*overlay, f"calibration={corpus}", f"method={method}", value, "study=x"]
        assert composer.trial(overrides) == by_hydra(loader, overrides)


def test_one_config_leaves_nothing_in_the_next(loader: hydra_inside.Loader) -> None:
    before = by_hydra(loader, [])
    for overrides in (["seed=3"], ["+exp=surgeon_sweep"], ["method=wanda", "sparsity=unstructured"]):
        assert by_hydra(loader, overrides) != before
        assert by_hydra(loader, []) == before


def test_option_that_reaches_outside_its_group_is_composed_whole(
    tmp_path, loader: hydra_inside.Loader
) -> None:
    group = tmp_path / "method"
    group.mkdir()
    (group / "reaching.yaml").write_text("# @package _global_\nseed: 7\nmethod:\n  name: reaching\n")
    loader.config_search_path.prepend("test", f"file://{tmp_path}")
    fresh = hydra_inside.Loader(loader.config_search_path)
    overrides = ["method=reaching", "sparsity.ratio=0.2"]
    config = Composer(fresh).trial(overrides)
    assert config["seed"] == 7
    assert config == by_hydra(fresh, overrides)


def test_every_mistake_at_once(composer: Composer) -> None:
    jobs = [
        ["method=surgeonn", "sparsity.ratio=0.1"],
        ["method=kobd", "sparsity.ratoi=0.1"],
        ["method=kobd", "calibration=austin"],
    ]
    _, problems = composer.trials(jobs)
    assert [(p.error.key, p.trials) for p in problems] == [
        ("method", (0,)), ("sparsity.ratoi", (1,)), ("calibration", (2,)),
    ]  # fmt: skip
    assert "Did you mean 'surgeon'?" in str(problems[0].error)
    assert "Did you mean 'sparsity.ratio'?" in str(problems[1].error)
    assert "Did you mean 'austen'?" in str(problems[2].error)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_checked_and_built(composer: Composer, method: str) -> None:
    patterns = method_source(composer.option("method", method)).literals["supports"]
    sparsity = {
        "rows_columns": "rows_columns",
        "unstructured": "unstructured",
        "n:m": "2of4",
        "units": "units",
    }
    more = ["domains=[kjv]"] if method.startswith("gprune") else []
    for pattern in patterns:
        config, _, errors = check_trial(
            composer.trial([f"method={method}", f"sparsity={sparsity[pattern]}", *more]), composer
        )
        assert errors == []
    built = build(config["method"], "method")
    assert built.name == method
    assert built.revision >= 1


@pytest.mark.parametrize(
    "group",
    ["model", "calibration", "allocation", "evaluation", "between_shots", "reconstruction", "tracking"],
)
def test_every_option_is_checked(composer: Composer, group: str) -> None:
    for name in composer.options(group):
        single = ["sparsity=unstructured", "method=magnitude"] if name == "owl" else []
        single += ["sparsity=units", "method=flap"] if name == "by_kind" else []
        single += ["calibration=tokens"] if name == "random" else []  # it has no tokenizer
        # its published warm-up is longer than training on few sequences
        single += ["reconstruction.warmup=0"] if name == "lora" else []
        config, _, errors = check_trial(composer.trial([f"{group}={name}", *single]), composer)
        # what a user has to fill in is a mistake until it is
        assert all(error.key.endswith((".path", ".id", ".revision", ".seq_len")) for error in errors), (
            name,
            errors,
        )
        assert config[group]["name"] == name or name in (
            "by_pattern",
            "local",
            "hub",
        )  # of what they stand for


OWN = """
from prunelab.methods.wanda import Wanda
from prunelab.reconstruction.exact import LeastSquares

class Mine(Wanda):
    needs = ("input_norm", "input_gram")

class Wanda(Wanda):
    pass

class Wrong(Wanda):
    needs = ("input_gramm",)

class Empty:
    name: str
    revision: int
    step: None
    scope = "linear"
    needs = ()
    supports = ("unstructured",)

class Repair(LeastSquares):
    pass

class Nothing:
    name: str
"""


def test_classes_of_ones_own_are_held_to_the_contract(
    composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["sparsity=unstructured", "method=wanda", "method._target_=own_classes."]

    def mistakes(*overrides: str) -> list[str]:
        return [str(error) for error in check_trial(composer.trial(list(overrides)), composer)[2]]

    assert not mistakes(*words[:2], words[2] + "Mine")  # fields, score and within are those of its base
    assert not mistakes(*words[:2], words[2] + "Wanda")
    (wrong,) = mistakes(*words[:2], words[2] + "Wrong")
    assert "method.needs='input_gramm'" in wrong
    assert "Did you mean 'input_gram'?" in wrong
    assert any("a class with score or prune" in text for text in mistakes(*words[:2], words[2] + "Empty"))
    repair = [
        "sparsity=unstructured",
        "method=wanda",
        "reconstruction=layer",
        "reconstruction._target_=own_classes.",
    ]
    assert not mistakes(*repair[:3], repair[3] + "Repair")
    (missing,) = mistakes(*repair[:2], "+reconstruction._target_=own_classes.Nothing")
    assert "It lacks window, stride, early_stop, repair" in missing


def test_n_of_m_takes_rounded_decimals_and_plans_the_exact_ratio(composer: Composer) -> None:
    words = ["sparsity=2of4", "method=wanda", "sparsity.n=1", "sparsity.m=32"]
    config, _, errors = check_trial(composer.trial([*words, "sparsity.ratio=0.9688"]), composer)
    assert not errors
    assert config["sparsity"]["ratio"] == 0.96875
    assert check_trial(composer.trial(words), composer)[0]["sparsity"]["ratio"] == 0.96875  # it follows
    (error,) = check_trial(composer.trial([*words, "sparsity.ratio=0.96"]), composer)[2]
    assert "0.96875, what 1:32 removes" in str(error)


def test_files_of_ones_own_may_be_named_from_here_and_measured_on(
    composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("a few words " * 200)
    words = ["calibration=text", "calibration.path=own.txt", "evaluation.corpora=[text,austen]"]
    config, corpora, errors = check_trial(composer.trial(words), composer)
    assert not errors
    assert config["calibration"]["path"] == corpora["text"]["path"] == str(tmp_path / "own.txt")


def test_build_refuses_unknown_fields() -> None:
    with pytest.raises(ConfigError, match="method"):
        build({"_target_": "prunelab.methods.magnitude.Magnitude", "name": "m", "nam": 1}, "method")
