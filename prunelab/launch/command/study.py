"""Overrides to a plan: compose every trial, check every trial, list every mistake at once."""

from __future__ import annotations

import time
from collections.abc import Sequence

from omegaconf import OmegaConf

from prunelab.config import hydra_inside
from prunelab.config.check import check_trial
from prunelab.config.compose import Composer, Config, Problem
from prunelab.config.hydra_inside import Loader
from prunelab.config.together import check_together
from prunelab.config.trial import typed, typed_corpora
from prunelab.errors import ConfigError, PrunelabError
from prunelab.plan.kind import check_outside
from prunelab.plan.study import Plan, build_plan

_SHOWN_TRIALS = 6


class StudyError(PrunelabError):
    """Mistakes in a study's configs, all of them, before anything was started."""

    def __init__(self, problems: Sequence[Problem], n_trials: int) -> None:
        self.problems = tuple(problems)
        what = "mistake" if len(problems) == 1 else "mistakes"
        lines = [
            f"{len(problems)} {what} in {n_trials} trial{'s' if n_trials > 1 else ''}; nothing was started."
        ]
        lines += [f"  {problem.error}{_where(problem, n_trials)}" for problem in problems]
        super().__init__("\n".join(lines))


def _where(problem: Problem, n_trials: int) -> str:
    if len(problem.trials) in (0, n_trials):
        return ""
    shown = ", ".join(map(str, problem.trials[:_SHOWN_TRIALS]))
    word = "trial" if len(problem.trials) == 1 else "trials"
    return f"  ({word} {shown}{', ...' if len(problem.trials) > _SHOWN_TRIALS else ''})"


def checked_trials(
    composer: Composer, jobs: Sequence[Sequence[str]]
) -> tuple[list[Config], list[dict[str, Config]], list[Problem]]:
    """Compose and check every job; return configs, the specs of their evaluation corpora, and all mistakes."""
    composed, problems = composer.trials(jobs)
    found: dict[str, tuple[ConfigError, list[int]]] = {
        str(p.error): (p.error, list(p.trials)) for p in problems
    }
    configs, corpora = [], []
    partial = {number for problem in problems for number in problem.trials}
    for number, config in enumerate(composed):
        checked, specs, errors = check_trial(config, composer, whole=number not in partial)
        errors += check_outside(checked)
        configs.append(checked)
        corpora.append(specs)
        for error in errors:
            trials = found.setdefault(str(error), (error, []))[1]
            if number not in trials:
                trials.append(number)
    alone = [Problem(error, tuple(trials)) for error, trials in found.values()]
    return configs, corpora, [*alone, *check_together(configs, corpora)]


def plan_study(composer: Composer, jobs: Sequence[Sequence[str]], argv: Sequence[str]) -> Plan:
    """Return the plan of all jobs; raises StudyError with every mistake of every trial."""
    if not jobs:
        raise ConfigError(
            "a sweep", "no trial", "one trial or more", "One of its axes has no values, such as range(3,0)."
        )
    configs, corpora, problems = checked_trials(composer, jobs)
    if problems:
        raise StudyError(problems, len(jobs))
    # nothing of them is wrong: from here on they are what the check has found them to be
    trials, specs = [typed(config) for config in configs], [typed_corpora(own) for own in corpora]
    return build_plan(trials, specs, jobs, argv=argv, created=time.strftime("%Y-%m-%dT%H:%M:%S%z"))


def explain(loader: Loader, overrides: Sequence[str]) -> StudyError | None:
    """Return all mistakes of a command line that Hydra could not compose, or None if they are not ours to explain."""
    parsed = hydra_inside.parse_all(overrides, loader)
    of_hydra = [o.input_line or "" for o in parsed if o.is_hydra_override()]
    composer = Composer(loader, of_hydra)
    tasks = [o for o in parsed if not o.is_hydra_override()]
    overlays = [
        o.input_line or "" for o in tasks if o.is_add() and o.value() in composer.options(o.key_or_group)
    ]
    whole = hydra_inside.compose(loader, "config", [*of_hydra, *overlays])
    axes = OmegaConf.select(whole, "hydra.sweeper.params") or {}
    swept = hydra_inside.parse_all((f"{k}={v}" for k, v in axes.items()), loader)
    jobs = hydra_inside.split_jobs([*swept, *tasks])
    problems = checked_trials(composer, jobs)[2]
    return StudyError(problems, len(jobs)) if problems else None
