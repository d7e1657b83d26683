"""What repairs fit to moves only the repairs: never a mask, never the keys of a trial without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunelab.config.compose import Composer
from prunelab.config.trial import typed, typed_corpora
from prunelab.launch.command.study import checked_trials, plan_study
from prunelab.plan.pipeline import trial_stages
from prunelab.plan.stage import Stage

BASE = ["method=wanda", "sparsity=unstructured", "reconstruction=block"]
BEFORE = "reconstruction.masks=before"


def stages(composer: Composer, *extra: str) -> dict[str, Stage]:
    configs, corpora, problems = checked_trials(composer, [[*BASE, *extra]])
    assert not problems, problems
    return trial_stages(typed(configs[0]), typed_corpora(corpora[0]))


def test_by_default_a_repair_reads_the_tokens_of_the_mask(composer: Composer) -> None:
    found = stages(composer, BEFORE)
    assert found["reconstruct"].inputs == {"prune": found["prune"].key, "calibrate": found["calibrate"].key}
    assert not [role for role in found if role.startswith("reconstruction")]
    whole = stages(
        composer,
        "reconstruction_data=self_generated_mix",
        "~reconstruction_data.parts.self_generated",
        BEFORE,
    )
    none = stages(
        composer,
        "reconstruction_data=self_generated_mix",
        "reconstruction_data.parts.self_generated=0",
        BEFORE,
    )
    for other in (whole, none):
        assert {role: s.key for role, s in other.items()} == {role: s.key for role, s in found.items()}


@pytest.mark.parametrize("data", ["self_generated", "self_generated_mix"])
def test_masks_never_see_self_generated_text(composer: Composer, data: str) -> None:
    before, after = stages(composer, BEFORE), stages(composer, f"reconstruction_data={data}", BEFORE)
    assert "reconstruction" not in before["evaluate"].inputs  # equal tokens are not measured twice
    assert after["evaluate"].inputs["reconstruction"] == after["reconstruction"].key
    moved = {role for role in before if before[role].key != after[role].key}
    assert moved == {"reconstruct", "evaluate"}
    assert after["reconstruct"].inputs == {
        "prune": after["prune"].key, "reconstruction": after["reconstruction"].key
    }  # fmt: skip
    written = {after[role].key for role in after if role.startswith("reconstruction")}
    assert not written & {key for role in ("prune", "dense") for key in after[role].inputs.values()}
    assert after["reconstruction"].identity["role"] == "reconstruction"


def test_masks_between_repairs_are_the_repairs_own_work(composer: Composer) -> None:
    before, found = stages(composer, BEFORE), stages(composer)
    assert set(before) - set(found) == {"prune"}
    stage = found["reconstruct"]
    assert stage.identity["prune"] == before["prune"].identity
    assert stage.identity["reconstruction"]["masks"] == "between"
    assert stage.inputs == {"calibrate": found["calibrate"].key}
    assert stage.runtime["method"] == before["prune"].runtime["method"]
    assert stages(composer, "reconstruction.masks=between")["reconstruct"].key == stage.key
    for override in ("method=magnitude", "sparsity.ratio=0.6", "allocation=owl", "sparsity.within=matrix"):
        assert stages(composer, override)["reconstruct"].key != stage.key
    # masks look at their own tokens only, whatever a repair fits to
    mixed = stages(composer, "reconstruction_data=self_generated")["reconstruct"]
    assert set(mixed.inputs) == {"calibrate", "reconstruction"}
    assert mixed.inputs["calibrate"] == stage.inputs["calibrate"]
    blind = stages(composer, "reconstruction_data=self_generated", "method=magnitude")["reconstruct"]
    assert set(blind.inputs) == {"reconstruction"}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["sparsity=rows_columns", "method=surgeon"], "sparsity.pattern=rows_columns"),
        (["allocation=global", "method=magnitude"], "allocation=global"),
        (["sparsity.propagation=dense"], "sparsity.propagation=dense"),
    ],
)
def test_masks_that_are_no_choice_per_block_come_before(
    composer: Composer, words: list[str], what: str
) -> None:
    found = stages(composer, *words)
    assert found["reconstruct"].identity["reconstruction"]["masks"] == "before"
    assert found["reconstruct"].inputs["prune"] == found["prune"].key
    _, _, problems = checked_trials(composer, [[*BASE, *words, "reconstruction.masks=between"]])
    (problem,) = problems
    assert "reconstruction.masks='between'" in str(problem)
    assert f"before, or by_pattern, with {what}" in str(problem)


@pytest.mark.parametrize("stream", ["sparsity.propagation=pruned", "sparsity.propagation=dense"])
@pytest.mark.parametrize(
    "override",
    [
        "evaluation.held_out=[kjv]", "evaluation.held_out=[]", "evaluation.corpora=[jargon]",
        "evaluation.error_samples=3", "evaluation.max_samples=5", "evaluation.seq_len=64",
    ],
)  # fmt: skip
def test_measured_text_moves_nothing_that_makes_weights(
    composer: Composer, override: str, stream: str
) -> None:
    given = ["reconstruction_data=self_generated_mix", stream, BEFORE]
    before, after = stages(composer, *given), stages(composer, *given, override)
    makers = [
        role for role in before if role.partition("/")[0] not in ("test", "held_out", "dense", "evaluate")
    ]
    assert {"calibrate", "prune", "reconstruct", "reconstruction/self_generated"} <= set(makers)
    assert ("statistics" in makers) == stream.endswith("dense")
    assert {role: before[role].key for role in makers} == {role: after[role].key for role in makers}
    assert before["evaluate"].key != after["evaluate"].key
    measured = {s.key for role, s in before.items() if role.partition("/")[0] in ("test", "held_out")}
    assert not measured & {key for role in makers for key in before[role].inputs.values()}


def test_a_mixture_shares_its_parts(composer: Composer) -> None:
    given = ["reconstruction_data=self_generated_mix", "+reconstruction_data.parts.kjv=5"]
    found = stages(composer, *given)
    mix = found["reconstruction"]
    assert mix.identity["parts"] == {"kjv": 5, "same": 32, "self_generated": 32}
    assert mix.inputs["same"] == found["calibrate"].key
    assert mix.inputs["kjv"] == found["reconstruction/kjv"].key != found["held_out/kjv"].key
    less = stages(composer, *given, "reconstruction_data.parts.same=8")
    assert less["reconstruction"].key != mix.key
    assert less["reconstruction/self_generated"].key == found["reconstruction/self_generated"].key
    alone = stages(composer, "reconstruction_data=self_generated")
    assert alone["reconstruction"].key == found["reconstruction/self_generated"].key
    assert alone["reconstruction"].identity["recipe"]["text_len"] == 256


@pytest.mark.parametrize(
    "override", ["temperature=0.9", "top_k=null", "language=any", "batch=8", "text_len=200"]
)
def test_every_field_of_the_recipe_counts(composer: Composer, override: str) -> None:
    before = stages(composer, "reconstruction_data=self_generated")
    after = stages(composer, "reconstruction_data=self_generated", f"reconstruction_data.{override}")
    assert {r for r in before if before[r].key != after[r].key} == {
        "reconstruction",
        "reconstruct",
        "evaluate",
    }


def test_without_a_repair_the_data_make_no_second_trial(composer: Composer, tmp_path: Path) -> None:
    jobs = [
        [f"paths.root={tmp_path}", *BASE, f"reconstruction={repair}", f"reconstruction_data={data}"]
        for repair in ("none", "block")
        for data in ("same", "self_generated_mix")
    ]
    plan = plan_study(composer, jobs, [])
    assert [trial.number for trial in plan.trials] == [0, 1, 2]
    assert [trial.name for trial in plan.trials] == [
        "wanda-0.5-u-austen-s0", "wanda-0.5-u-block-austen-s0", "wanda-0.5-u-block-self_generated_mix-austen-s0"
    ]  # fmt: skip


DATA = "reconstruction_data=self_generated"
MISTAKES = [
    (["reconstruction_data=self_genrated"], ["reconstruction_data=", "Did you mean 'self_generated'?"]),
    (
        [DATA, "+reconstruction_data.parts.austn=4"],
        ["reconstruction_data.parts='austn'", "Did you mean 'austen'?"],
    ),
    (
        [DATA, "reconstruction_data.parts.self_generated=-1"],
        ["parts.self_generated=-1", "an integer, x >= 0"],
    ),
    ([DATA, "reconstruction_data.parts.self_generated=0"], ["at least one part with a window"]),
    ([DATA, "reconstruction_data.parts.self_generated=null"], ["parts.self_generated=None", "an integer"]),
    ([DATA, "+reconstruction_data.parts.same=33"], ["parts.same=33", "at most 32, calibration.n_samples"]),
    ([DATA, "reconstruction_data.temperature=0"], ["reconstruction_data.temperature=0", "x > 0"]),
    ([DATA, "reconstruction_data.top_p=1.5"], ["reconstruction_data.top_p=1.5", "0 < x <= 1"]),
    ([DATA, "reconstruction_data.language=englsh"], ["reconstruction_data.language", "english, any"]),
    (
        [DATA, "reconstruction_data.batch=null"],
        ["reconstruction_data.batch=None", "set, since self_generated"],
    ),
    ([DATA, "reconstruction_data.text_len=64"], ["text_len=64", "at least 128, the window"]),
    ([DATA, "reconstruction_data.text_len=600"], ["text_len=600", "at most 512", "embedded_llama"]),
    ([DATA, "reconstruction_data.greedy_tokens=127"], ["greedy_tokens=128", "fewer than the window"]),
    (["+reconstruction_data.part=1"], ["reconstruction_data.part=1", "Did you mean 'parts'?"]),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=lambda value: value[-1][:40])
def test_mistakes_are_found_while_planning(composer: Composer, words: list[str], says: list[str]) -> None:
    problems = checked_trials(composer, [[*BASE, *words]])[2]
    text = "\n".join(str(problem.error) for problem in problems)
    assert len(problems) == 1, text
    for piece in says:
        assert piece in text
