"""Methods that ask the whole model: their tokens come to the stage prune themselves, and what cannot be is told in planning."""

from __future__ import annotations

import pytest

from prunelab.config.compose import Composer
from prunelab.config.trial import typed, typed_corpora
from prunelab.errors import ConfigError
from prunelab.launch.command.study import checked_trials
from prunelab.pattern.judged import judged_with, n_held_out, windows_error
from prunelab.plan.pipeline import trial_stages
from prunelab.plan.stage import Stage

UNITS = ["sparsity=units", "sparsity.ratio=0.3"]
GPRUNE = ["method=gprune_learned", "domains=[kjv]", *UNITS]
MI = ["method=mi_paper", *UNITS]


def stages(composer: Composer, *words: str) -> dict[str, Stage]:
    configs, corpora, problems = checked_trials(composer, [list(words)])
    assert not problems, problems
    return trial_stages(typed(configs[0]), typed_corpora(corpora[0]))


def problems(composer: Composer, *words: str) -> str:
    return "\n".join(map(str, checked_trials(composer, [list(words)])[2]))


@pytest.mark.parametrize("method", ["fusion_learned", "fusion_uncertainty", "mi_paper"])
def test_the_tokens_themselves_are_an_input(composer: Composer, method: str) -> None:
    found = stages(composer, f"method={method}", *UNITS)
    assert "statistics" not in found
    assert found["prune"].inputs == {"calibrate": found["calibrate"].key}
    base = "mutual_information" if method == "mi_paper" else "estimation_fusion"
    other = stages(composer, f"method={base}", *UNITS)
    assert other["prune"].inputs["statistics"] == other["statistics"].key


def test_what_cannot_be_is_told(composer: Composer) -> None:
    assert not problems(composer, *GPRUNE)
    assert "global with these fields" in problems(composer, *GPRUNE, "allocation=uniform")
    told = problems(composer, *MI, "sparsity.propagation=pruned", "allocation=uniform")
    assert "asks the whole model's loss" in told
    assert "3 or more" in problems(composer, *GPRUNE, "calibration.n_samples=2")
    assert not problems(composer, *GPRUNE, "calibration.n_samples=3")
    assert "2 or more" in problems(composer, *MI, "calibration.n_samples=1")
    assert not problems(composer, *MI, "calibration.n_samples=1", "method.select=first", "method.n_seeds=1")
    assert "8" in problems(composer, "method=fusion_learned", *UNITS, "method.probes=7")
    assert not problems(composer, "method=fusion_learned", *UNITS, "calibration.n_samples=1")


def test_what_is_held_out_and_left() -> None:
    assert [n_held_out(n, 0.25) for n in (1, 2, 3, 8, 10)] == [1, 1, 1, 2, 2]
    assert n_held_out(8, None) == 0
    assert windows_error(3, 0.25, 2, "m") is None
    error = windows_error(4, 0.9, 2, "m")
    assert isinstance(error, ConfigError)
    assert "16 or more" in str(error)
    literal = (("mode", "a", ("global", "uniform")), ("other", "b", ("global",)))
    assert judged_with({"mode": "a", "other": "b"}, literal) == ("global",)
    assert judged_with({"mode": "a", "other": "c"}, literal) == ("global", "uniform")
    assert judged_with({"mode": "c"}, literal) == ()
