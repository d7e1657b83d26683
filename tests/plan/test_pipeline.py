"""What trials share, what moves a key, and how stages become jobs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from prunelab.config.compose import Composer, Config
from prunelab.config.trial import typed, typed_corpora
from prunelab.errors import StoreError
from prunelab.launch.command.study import checked_trials, plan_study
from prunelab.plan.graph import jobs, order, shots
from prunelab.plan.pipeline import trial_stages
from prunelab.plan.study import Plan, load_plan, save_plan


def sweep(**axes: list[Any]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for key, values in axes.items():
        found = [[*job, f"{key.replace('__', '.')}={value}"] for job in found for value in values]
    return found


def plan(composer: Composer, root: Path, **axes: list[Any]) -> Plan:
    given = [[f"paths.root={root}", *job] for job in sweep(**axes)]
    return plan_study(composer, given, ["argv"])


def test_the_sweep_shares_what_is_equal(composer: Composer, tmp_path: Path) -> None:
    whole = plan(
        composer, tmp_path, calibration=["austen", "pydocs"], method=["surgeon", "kobd", "lobd", "magnitude"],
        sparsity__ratio=[0.1, 0.2, 0.3, 0.4, 0.5],
    )  # fmt: skip
    kinds = [stage.kind for stage in whole.stages.values()]
    assert len(whole.trials) == 40
    assert kinds.count("dense") == 1
    assert kinds.count("evaluate") == 40
    assert kinds.count("prune") == 35  # magnitude looks at no data: five stages serve both domains
    assert kinds.count("calibrate") == 2 + 4 + 4  # masks; test and held-out text of four corpora


def test_the_ratios_of_a_method_are_one_trajectory(composer: Composer, tmp_path: Path) -> None:
    ratios = [0.3, 0.1, 0.5, 0.2, 0.4]
    whole = plan(composer, tmp_path, method=["surgeon"], sparsity__ratio=ratios)
    prunes = {tuple(s.identity["schedule"]): s for s in whole.stages.values() if s.kind == "prune"}
    longest = max(prunes, key=len)
    assert sum((shots(stage, whole.stages) or 0) for stage in prunes.values()) == len(longest) == 10
    ordered = [key for key in order(whole.stages) if whole.stages[key].kind == "prune"]
    assert [len(whole.stages[key].identity["schedule"]) for key in ordered] == [2, 4, 6, 8, 10]


def test_one_more_ratio_adds_only_its_own_stages(composer: Composer, tmp_path: Path) -> None:
    small = plan(composer, tmp_path, method=["surgeon", "magnitude"], sparsity__ratio=[0.1, 0.2])
    large = plan(composer, tmp_path, method=["surgeon", "magnitude"], sparsity__ratio=[0.1, 0.2, 0.3])
    new = [stage for key, stage in large.stages.items() if key not in small.stages]
    assert sorted(stage.kind for stage in new) == ["evaluate", "evaluate", "prune", "prune"]


def test_jobs_wait_for_what_they_need(composer: Composer, tmp_path: Path) -> None:
    whole = plan(composer, tmp_path, method=["surgeon", "magnitude"], sparsity__ratio=[0.1, 0.2, 0.3])
    found = jobs(whole, set())
    place = {job.name: i for i, job in enumerate(found)}
    assert sorted(key for job in found for key in job.stages) == sorted(whole.stages)
    for job in found:
        assert all(place[name] < place[job.name] for name in (*job.after, *job.after_any))
    own = [job for job in found if job.trial is not None]
    assert [job.name for job in own] == [trial.name for trial in whole.trials]
    last = next(job for job in own if job.name == "surgeon-0.3-austen-s0")
    assert [whole.stages[key].kind for key in last.stages] == ["prune", "evaluate"]
    assert last.after_any == ("prune-surgeon-0.2-austen-s0",)
    done = {key for job in found if job.trial is None for key in job.stages}
    assert {job.name for job in jobs(whole, done)} == {trial.name for trial in whole.trials}


BASE = ["method=surgeon", "calibration=austen"]


def keys(composer: Composer, *extra: str) -> dict[str, str]:
    configs, corpora, problems = checked_trials(composer, [[*BASE, *extra]])
    assert not problems
    return keys_of(configs[0], corpora[0])


def keys_of(config: Config, corpora: dict[str, Config]) -> dict[str, str]:
    return {role: stage.key for role, stage in trial_stages(typed(config), typed_corpora(corpora)).items()}


@pytest.mark.parametrize(
    "override",
    [
        "study=other", "paths.root=/elsewhere", "runtime.device=cpu", "runtime.batch_tokens=64", "runtime.threads=7",
        "tracking=wandb", "model.name=another", "calibration.name=another", "evaluation.name=another",
    ],
)  # fmt: skip
def test_names_places_and_placement_do_not_move_keys(composer: Composer, override: str) -> None:
    assert keys(composer, override) == keys(composer)


def test_the_class_of_a_method_moves_keys(composer: Composer) -> None:
    configs, corpora, _ = checked_trials(composer, [BASE])
    other = copy.deepcopy(configs[0])
    other["method"]["_target_"] = "prunelab.methods.kobd.KOBD"
    after = keys_of(other, corpora[0])
    before = keys(composer)
    assert {role for role in before if before[role] != after[role]} == {"prune", "evaluate"}


@pytest.mark.parametrize(
    ("override", "moved"),
    [
        ("seed=1", {"calibrate", "prune", "evaluate"}),
        ("model.trust_remote_code=true", {"calibrate", "test", "held_out", "dense", "prune", "evaluate"}),
        ("sparsity.ratio=0.31", {"prune", "evaluate"}),
        ("method.damping_input=0.02", {"prune", "evaluate"}),
        ("method.revision=9", {"prune", "evaluate"}),
        ("method.step=0.1", {"prune", "evaluate"}),
        ("allocation=uniform", {"prune", "evaluate"}),
        ("calibration.n_samples=16", {"calibrate", "prune", "evaluate"}),
        ("calibration.seq_len=64", {"calibrate", "prune", "evaluate"}),
        ("evaluation.error_samples=4", {"held_out", "evaluate"}),
        ("evaluation.max_samples=8", {"test", "dense", "evaluate"}),
        ("evaluation.seq_len=64", {"test", "held_out", "dense", "evaluate"}),
        ("model=embedded_opt", {"calibrate", "test", "held_out", "dense", "prune", "evaluate"}),
        ("model.dtype=bfloat16", {"dense", "prune", "evaluate"}),
    ],
)
def test_what_counts_moves_the_keys_behind_it(composer: Composer, override: str, moved: set[str]) -> None:
    before, after = keys(composer), keys(composer, override)
    assert {role.partition("/")[0] for role in before if before[role] != after[role]} == moved


def test_a_dtype_of_stored_states_counts_where_it_moves_numbers(composer: Composer) -> None:
    words = ["sparsity=unstructured", "reconstruction=block", "reconstruction.masks=before"]
    for method, moved in (
        ("wanda", {"prune", "reconstruct", "evaluate"}),
        ("magnitude", {"reconstruct", "evaluate"}),
    ):
        before = keys(composer, *words, f"method={method}")
        assert before == keys(composer, *words, f"method={method}", "runtime.activation_dtype=float32")
        after = keys(composer, *words, f"method={method}", "runtime.activation_dtype=bfloat16")
        assert {role for role in before if before[role] != after[role]} == moved


def test_local_files_count_by_content(composer: Composer, tmp_path: Path) -> None:
    one, two, three = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    one.write_text("same words " * 50)
    two.write_text("same words " * 50)
    three.write_text("other words " * 50)
    found = [
        keys(composer, "calibration=text", f"calibration.path={p}")["calibrate"] for p in (one, two, three)
    ]
    assert found[0] == found[1] != found[2]


def test_methods_without_needs_ignore_the_calibration(composer: Composer) -> None:
    austen, kjv = (keys(composer, "method=magnitude", f"calibration={name}") for name in ("austen", "kjv"))
    assert austen["prune"] == kjv["prune"]
    assert austen["evaluate"] != kjv["evaluate"]


def test_a_plan_survives_its_file(composer: Composer, tmp_path: Path) -> None:
    whole = plan(composer, tmp_path, method=["surgeon", "magnitude"], sparsity__ratio=[0.1, 0.2])
    kept = save_plan(whole)
    for place in (whole.folder, kept):
        again = load_plan(place)
        assert again.stages == whole.stages
        assert [t.stages for t in again.trials] == [t.stages for t in whole.trials]
        assert again.folder == whole.folder


def test_a_plan_changed_by_hand_is_refused(composer: Composer, tmp_path: Path) -> None:
    whole = plan(composer, tmp_path, method=["surgeon"], sparsity__ratio=[0.1])
    save_plan(whole)
    path = whole.folder / "plan.json"
    plain = json.loads(path.read_text())
    next(s for s in plain["stages"].values() if s["kind"] == "prune")["identity"]["seed"] = 5
    path.write_text(json.dumps(plain))
    with pytest.raises(StoreError, match="changed"):
        load_plan(whole.folder)
    with pytest.raises(StoreError, match=r"plan\.json is missing"):
        load_plan(tmp_path / "nowhere")


def test_tracking_is_a_stage_of_its_own_that_moves_no_other_key(composer: Composer, tmp_path: Path) -> None:
    axes: dict[str, list] = {"method": ["magnitude"], "sparsity__ratio": [0.1, 0.2]}
    plain = plan(composer, tmp_path, **axes)
    tracked = plan(composer, tmp_path, tracking=["wandb"], **axes)
    assert [trial.key for trial in tracked.trials] == [trial.key for trial in plain.trials]
    assert plain.stages.keys() < tracked.stages.keys()
    for before, trial in zip(plain.trials, tracked.trials, strict=True):
        told = tracked.stages[trial.stages["track"]]
        assert dict(told.inputs) == dict(before.stages)
    last = [job.stages[-1] for job in jobs(tracked, set()) if job.trial is not None]
    assert last == [trial.stages["track"] for trial in tracked.trials]
    # a finished trial that its tracker knows nothing of: one job, which tells
    left = jobs(tracked, plain.stages.keys())
    assert [(job.name, len(job.stages), job.after) for job in left] == [
        (t.name, 1, ()) for t in tracked.trials
    ]


def test_a_correction_between_shots_is_of_the_stage_and_shares_shots(
    composer: Composer, tmp_path: Path
) -> None:
    ratios = [0, 0.1, 0.2, 0.3]
    whole = plan(
        composer, tmp_path, method=["surgeon"], between_shots=["none", "lora_surgeon"], sparsity__ratio=ratios
    )
    assert len(whole.trials) == 7  # a dense model has no shots
    found = [stage for stage in whole.stages.values() if stage.kind == "prune"]
    own = [stage for stage in found if "between_shots" in stage.identity]
    assert [len(stage.identity["schedule"]) for stage in own] == [2, 4, 6]
    # a state is the one after its last shot, corrected or not where another follows: one trajectory for all ratios
    assert own[0].key in own[1].continues
    assert own[1].key in own[2].continues
    assert not {key for stage in own for key in (stage.key, *stage.continues)} & {
        key for stage in found if stage not in own for key in (stage.key, *stage.continues)
    }
    assert len({trial.name for trial in whole.trials}) == 7
    assert "surgeon-0.2-between=lora_surgeon-austen-s0" in [trial.name for trial in whole.trials]


def test_a_correction_reads_tokens_where_the_method_needs_none(composer: Composer, tmp_path: Path) -> None:
    axes = {"method": ["magnitude"], "method__step": [0.1]}
    plain = plan(composer, tmp_path, **axes)
    corrected = plan(composer, tmp_path, between_shots=["lora_surgeon"], **axes)
    inputs = [
        next(s.inputs for s in p.stages.values() if s.kind == "prune" and s.identity["schedule"])
        for p in (plain, corrected)
    ]
    assert [sorted(one) for one in inputs] == [[], ["calibrate"]]
