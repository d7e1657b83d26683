"""Token sets that a method compares: stages of their own, inputs of the stage prune, checked before anything is queued."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from prunelab.config.compose import Composer
from prunelab.config.hydra_inside import open_loader
from prunelab.config.place import conf_folder
from prunelab.config.trial import typed, typed_corpora
from prunelab.launch.command.study import checked_trials, plan_study
from prunelab.plan.pipeline import trial_stages
from prunelab.plan.stage import Stage

CLASS = """
from prunelab.methods.wanda import Wanda

class Compare(Wanda):
    domains = 3
"""
BASE = ["method=wanda", "sparsity=unstructured", "sparsity.ratio=0.5"]
COMPARE = [*BASE, "method._target_=compare_texts.Compare", "method.name=compare"]


@pytest.fixture(autouse=True)
def a_method_that_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compare_texts.py").write_text(CLASS)
    monkeypatch.syspath_prepend(tmp_path)


def stages(composer: Composer, *words: str) -> dict[str, Stage]:
    configs, corpora, problems = checked_trials(composer, [list(words)])
    assert not problems, problems
    return trial_stages(typed(configs[0]), typed_corpora(corpora[0]))


def keys(found: dict[str, Stage]) -> dict[str, str]:
    return {role: stage.key for role, stage in found.items()}


def test_other_methods_do_not_see_the_domains(composer: Composer) -> None:
    assert keys(stages(composer, *BASE)) == keys(stages(composer, *BASE, "domains=[kjv,pydocs]"))


@pytest.mark.parametrize("stream", ["pruned", "dense"])
def test_every_domain_is_an_input_of_the_stage_prune(composer: Composer, stream: str) -> None:
    words = [*COMPARE, f"sparsity.propagation={stream}"]
    found = stages(composer, *words, "domains=[kjv,pydocs]")
    prune = found["prune"]
    assert set(prune.inputs) == {"calibrate", "domain/kjv", "domain/pydocs"}
    assert prune.inputs["domain/kjv"] == found["domain/kjv"].key
    assert found["domain/kjv"].identity["role"] == "mask"
    assert prune.inputs.items() <= found["evaluate"].inputs.items()
    other = stages(composer, *words, "domains=[kjv,jargon]")
    moved = {role for role in keys(found) if keys(found)[role] != keys(other).get(role)}
    assert moved == {"domain/pydocs", "prune", "evaluate"}


def test_the_trials_own_text_may_be_among_them(composer: Composer, tmp_path: Path) -> None:
    lists = ("[kjv,pydocs]", "[pydocs,austen,kjv]")
    jobs = [[f"paths.root={tmp_path}", *COMPARE, f"domains={names}"] for names in lists]
    assert len(plan_study(composer, jobs, []).trials) == 1
    whole = "domains=[austen,kjv,pydocs]"  # a matrix of tasks: each text is the mask's once
    jobs = [
        [f"paths.root={tmp_path}", *COMPARE, whole, f"calibration={name}"]
        for name in ("austen", "kjv", "pydocs")
    ]
    plan = plan_study(composer, jobs, [])
    assert [trial.name for trial in plan.trials] == [
        f"compare-0.5-u-{n}-s0" for n in ("austen", "kjv", "pydocs")
    ]
    drawn = [s for s in plan.stages.values() if s.kind == "calibrate" and s.identity["role"] == "mask"]
    assert len(drawn) == 3


def test_domains_are_drawn_like_the_mask(composer: Composer) -> None:
    words = [*COMPARE, "domains=[kjv,pydocs]", "calibration.n_samples=7", "calibration.seq_len=64", "seed=3"]
    found = stages(composer, *words)
    identity = found["domain/kjv"].identity
    assert [identity[key] for key in ("n_samples", "seq_len", "seed")] == [7, 64, 3]
    as_mask = stages(composer, *BASE, "calibration=kjv", *words[-3:])
    assert as_mask["calibrate"].key == found["domain/kjv"].key


def test_a_sweep_names_what_differs(composer: Composer, tmp_path: Path) -> None:
    jobs = [
        [f"paths.root={tmp_path}", *COMPARE, f"domains={names}"] for names in ("[kjv,pydocs]", "[kjv,jargon]")
    ]
    first, second = (trial.name for trial in plan_study(composer, jobs, []).trials)
    assert "domains=kjv-pydocs" in first
    assert "domains=kjv-jargon" in second


MISTAKES = [
    (["domains=[kjv,pydosc]"], ["domains='pydosc'", "names of calibration options", "Did you mean 'pydocs'?"]),
    (["domains=[kjv,pydocs,kjv]"], ["domains=['kjv', 'pydocs', 'kjv']", "different names", "Two of kjv are one."]),
    (["domains=[austen,austen,kjv,jargon]"], ["different names", "Two of austen are one."]),
    (["domains=[kjv]"], ["domains=['kjv']", "at least 3 kinds of text with method=compare", "austen of calibration"]),
    (["domains=[austen,kjv]"], ["at least 3 kinds of text"]),
    ([], ["domains=[]", "at least 3 kinds of text", "For instance domains=[c4,jargon]."]),
    (["domains=[kjv,pydocs]", "calibration.n_samples=1"], ["calibration.n_samples=1", "2 or more with method=compare"]),
    (["domains=kjv"], ["domains='kjv'", "a list"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=lambda value: str(value[:1]))
def test_mistakes_are_found_while_planning(composer: Composer, words: list[str], says: list[str]) -> None:
    problems = checked_trials(composer, [[*COMPARE, *words]])[2]
    text = "\n".join(str(problem.error) for problem in problems)
    assert len(problems) == 1, text
    for piece in says:
        assert piece in text


@pytest.mark.parametrize("role", ["corpora", "held_out"])
def test_text_that_judges_is_no_domain(tmp_path: Path, role: str) -> None:
    (tmp_path / "own.txt").write_text("some words " * 4000)
    folder = tmp_path / "conf" / "calibration"
    folder.mkdir(parents=True)
    option = yaml.safe_load((conf_folder() / "calibration" / "text.yaml").read_text())
    option |= {"name": "own", "path": str(tmp_path / "own.txt"), "split": "all"}
    (folder / "own.yaml").write_text(yaml.safe_dump(option))
    with_own = Composer(open_loader(conf_folder(), tmp_path / "conf"))
    words = [*COMPARE, "domains=[kjv,own]"]
    assert "domain/own" in stages(with_own, *words)
    problems = checked_trials(with_own, [[*words, f"evaluation.{role}=[own]"]])[2]
    text = "\n".join(str(problem.error) for problem in problems)
    assert (
        f"evaluation.{role}='own': allowed is text that nothing was fitted to. domains fits to the same text"
        in text
    )


def test_a_method_that_divides_its_own_text_needs_no_other(composer: Composer) -> None:
    words = ["method=gprune", "sparsity=units", "sparsity.ratio=0.2"]
    alone = stages(composer, *words)
    assert not any(role.startswith("domain/") for role in alone)
    assert set(alone["prune"].inputs) == {"calibrate"}
    assert alone["prune"].key != stages(composer, *words, "method.pseudo_domains=3")["prune"].key
    for more, said in (
        (["method.pseudo_domains=null"], "at least 2 kinds of text"),
        (["calibration.n_samples=7"], "2 sequences or more for each of method.pseudo_domains=4"),
        (["method.pseudo_domains=1"], "x >= 2"),
    ):
        problems = checked_trials(composer, [[*words, *more]])[2]
        assert said in str(problems), problems
