"""Facts that stand in one table stand nowhere else: a literal of a stage kind outside its table is a second table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from prunelab.plan.kind import KINDS

PACKAGE = Path(__file__).resolve().parents[1] / "prunelab"
ORCHESTRATION = ("launch", "plan", "report", "store", "tracking", "config", "cli.py", "files.py", "metric.py")
# the table, and what builds the stages of a trial
AT_HOME = {"plan/kind.py", "plan/pipeline.py"}
OTHER_MEANINGS = {
    ("config/check.py", "dense"),  # sparsity.propagation
    ("config/contract.py", "prune"),  # the function of a method
    ("report/table.py", "dense"),  # the label of the unpruned model's row
}


def sources() -> list[Path]:
    places = [PACKAGE / name for name in ORCHESTRATION]
    return [path for place in places for path in ([place] if place.suffix else sorted(place.rglob("*.py")))]


def literals(path: Path) -> list[tuple[int, str]]:
    """Return the string constants of a file with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [(node.lineno, node.value) for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_literal_of_a_stage_kind_outside_its_table(kind: str) -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sources()
        if path.exists() and path.relative_to(PACKAGE).as_posix() not in AT_HOME
        for line, text in literals(path)
        if text == kind and (path.relative_to(PACKAGE).as_posix(), text) not in OTHER_MEANINGS
    ]
    assert not found, f"{kind!r} is a literal of {found}; import it from prunelab.plan.kind"
