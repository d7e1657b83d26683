"""One look at the dense model serves every ratio and method that asks for the same of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunelab.config.compose import Composer
from prunelab.config.trial import typed, typed_corpora
from prunelab.launch.command.study import checked_trials, plan_study
from prunelab.plan.graph import jobs
from prunelab.plan.pipeline import trial_stages
from prunelab.plan.stage import Stage
from prunelab.plan.study import Plan

DENSE = ["sparsity=unstructured", "sparsity.propagation=dense"]


def stages(composer: Composer, *words: str) -> dict[str, Stage]:
    configs, corpora, problems = checked_trials(composer, [list(words)])
    assert not problems, problems
    return trial_stages(typed(configs[0]), typed_corpora(corpora[0]))


def plan(composer: Composer, root: Path, *trials: tuple[str, ...]) -> Plan:
    return plan_study(composer, [[f"paths.root={root}", *DENSE, *words] for words in trials], [])


def of_kind(whole: Plan, kind: str) -> list[Stage]:
    return [stage for stage in whole.stages.values() if stage.kind == kind]


def test_ratios_share_one_look(composer: Composer, tmp_path: Path) -> None:
    whole = plan(
        composer, tmp_path, *[("method=wanda", f"sparsity.ratio={r}") for r in (0.2, 0.4, 0.6)],
        *[("method=sparsegpt", f"sparsity.ratio={r}") for r in (0.2, 0.4)],
        ("method=magnitude", "sparsity.ratio=0.2"),
    )  # fmt: skip
    found = {tuple(stage.identity["statistics"]): stage for stage in of_kind(whole, "statistics")}
    assert sorted(found) == [("input_gram",), ("input_norm",)]
    assert [len(whole.users(found[need,].key)) for need in ("input_norm", "input_gram")] == [3, 2]
    for stage in of_kind(whole, "prune"):
        expected = {"wanda": "input_norm", "sparsegpt": "input_gram"}.get(stage.identity["method"]["name"])
        assert dict(stage.inputs) == ({} if expected is None else {"statistics": found[expected,].key})
    shared = [job for job in jobs(whole, set()) if job.trial is None and job.name.startswith("statistics-")]
    assert len(shared) == 2
    own = next(job for job in jobs(whole, set()) if job.name == "wanda-0.4-u-austen-s0")
    assert shared[0].name in own.after


def test_allocations_ask_for_norms(composer: Composer, tmp_path: Path) -> None:
    whole = plan(
        composer, tmp_path, ("method=wanda",), ("method=wanda", "allocation=owl"),
        ("method=magnitude", "allocation=owl"), ("method=wanda", "allocation=global"),
        ("method=sparsegpt", "allocation=owl"),
    )  # fmt: skip
    found = {tuple(stage.identity["statistics"]): stage for stage in of_kind(whole, "statistics")}
    assert sorted(found) == [("input_gram", "input_norm"), ("input_norm",)]
    assert len(whole.users(found["input_norm",].key)) == 4


@pytest.mark.parametrize(
    ("override", "moves"),
    [
        ("sparsity.ratio=0.3", False),
        ("sparsity.within=matrix", False),
        ("method.revision=2", False),
        ("evaluation.seq_len=64", False),
        ("seed=1", True),
        ("calibration=kjv", True),
        ("calibration.n_samples=8", True),
        ("model.dtype=bfloat16", True),
    ],
)
def test_what_moves_the_key(composer: Composer, override: str, moves: bool) -> None:
    before = stages(composer, "method=wanda", *DENSE)["statistics"]
    assert (stages(composer, "method=wanda", *DENSE, override)["statistics"].key != before.key) == moves


def test_only_the_dense_stream_is_shared(composer: Composer) -> None:
    for words in (
        ["method=wanda", "sparsity=unstructured"],
        ["method=magnitude", *DENSE],
        ["method=wanda", "sparsity=unstructured", "allocation=owl"],
        ["method=surgeon"],
    ):
        found = stages(composer, *words)
        assert "statistics" not in found
        assert set(found["prune"].inputs) <= {"calibrate"}


def test_global_needs_the_dense_stream(composer: Composer) -> None:
    words = ["sparsity=unstructured", "allocation=global"]
    assert stages(composer, "method=wanda", *words)["prune"].identity["propagation"] == "dense"  # by_method
    problems = checked_trials(composer, [["method=wanda", *words, "sparsity.propagation=pruned"]])[2]
    assert "sparsity.propagation='pruned': allowed is dense with allocation=global" in str(problems[0].error)
    assert not checked_trials(composer, [["method=magnitude", *words], ["method=wanda", *words, *DENSE]])[2]
