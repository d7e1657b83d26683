"""What ``prunelab status`` shows of a study, from files alone."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path
from rich.console import Console

from prunelab.config.compose import Composer
from prunelab.config.place import conf_folder
from prunelab.launch.plugin import register
from prunelab.launch.status import status_table, trial_states
from prunelab.launch.study import plan_study
from prunelab.plan.study import Plan


def plan_of(root: Path, *words: str) -> Plan:
    register()
    loader = ConfigLoaderImpl(create_automatic_config_search_path(None, None, str(conf_folder())))
    given = [f"paths.root={root}", "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]", *words]
    return plan_study(Composer(loader), [given], [])


def shown(plan: Plan) -> str:
    console = Console(width=200, file=StringIO())
    console.print(status_table(plan, trial_states(plan), whole=True))
    return console.file.getvalue()


def header(text: str) -> list[str]:
    return [cell.strip() for cell in next(line for line in text.splitlines() if "trial " in line).split("┃")][
        1:-1
    ]


def test_a_column_for_every_kind_of_stage_that_the_study_has(tmp_path: Path) -> None:
    plain = plan_of(tmp_path, "method=magnitude")
    assert header(shown(plain)) == ["trial", "state", "dense", "prune", "evaluate", "reason"]
    repaired = plan_of(tmp_path, "method=wanda", "sparsity=unstructured", "reconstruction=layer")
    assert header(shown(repaired)) == [
        "trial",
        "state",
        "dense",
        "prune",
        "reconstruct",
        "evaluate",
        "reason",
    ]
