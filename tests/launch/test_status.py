"""What ``prunelab status`` shows of a study, from files alone."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

from rich.console import Console

from prunelab.launch.status import status_table, trial_states
from prunelab.plan.study import Plan


def shown(plan: Plan) -> str:
    console = Console(width=200, file=StringIO())
    console.print(status_table(plan, trial_states(plan), whole=True))
    return console.file.getvalue()


def header(text: str) -> list[str]:
    return [cell.strip() for cell in next(line for line in text.splitlines() if "trial " in line).split("┃")][
        1:-1
    ]


def test_a_column_for_every_kind_of_stage_that_the_study_has(plan_of: Callable[..., Plan]) -> None:
    plain = plan_of("method=magnitude")
    assert header(shown(plain)) == ["trial", "state", "dense", "prune", "evaluate", "reason"]
    repaired = plan_of("method=wanda", "sparsity=unstructured", "reconstruction=layer")
    assert header(shown(repaired)) == [
        "trial",
        "state",
        "dense",
        "prune",
        "reconstruct",
        "evaluate",
        "reason",
    ]
