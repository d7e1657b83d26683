"""The keys of every experiment's stages: one that moves makes everybody's results of it anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from by_conf import composer, option_names
from omegaconf import OmegaConf

from prunelab.config.hydra_inside import compose, parse_all, split_jobs
from prunelab.launch.command.study import plan_study
from prunelab.plan.study import Plan

EXPERIMENTS = option_names("exp")


def plan_of(experiment: str, root: Path) -> Plan:
    """Plan an experiment as ``python -m prunelab +exp=NAME -m`` does."""
    loader = composer().loader
    overlay = [f"+exp={experiment}"]
    whole = compose(loader, "config", overlay)
    axes = OmegaConf.select(whole, "hydra.sweeper.params") or {}
    words = [*(f"{key}={value}" for key, value in axes.items()), *overlay, f"paths.root={root}"]
    parsed = parse_all(words, loader)
    jobs = split_jobs(parsed)
    return plan_study(composer(), jobs, ["golden"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_keys_of_every_experiment_stay(experiment: str, tmp_path: Path, golden) -> None:
    plan = plan_of(experiment, tmp_path)
    found = {
        f"{trial.name} {role}": key[:16]
        for trial in plan.trials
        for role, key in sorted(trial.stages.items())
    }
    assert golden(f"keys/{experiment}", found) == found
