"""Facts that stand in one table stand nowhere else: a literal of a stage kind, or the name of a metric's numbers, outside its
table is a second table.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from prunelab.metric import METRICS
from prunelab.plan.kind import KINDS

PACKAGE = Path(__file__).resolve().parents[1] / "prunelab"
ORCHESTRATION = ("launch", "plan", "report", "store", "tracking", "config", "cli.py", "files.py", "metric.py")
# the table, and what builds the stages of a trial
AT_HOME = {"plan/kind.py", "plan/pipeline.py"}
OTHER_MEANINGS = {
    ("config/check.py", "dense"),  # sparsity.propagation
    ("config/contract.py", "prune"),  # the function of a method
    ("config/check.py", "speed"),  # the key evaluation.speed
    ("metric.py", "speed"),  # the name of a metric
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


def test_no_name_of_a_metrics_numbers_outside_its_table() -> None:
    """``ppl/`` in a text that is not a docstring builds or takes apart a name; ``PPL.at``, ``found`` and ``rest`` do that."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "metric.py":
            continue
        for line, text in names(path):
            parts = text.split("/")
            heads = {"/".join(parts[:end]) for end in range(1, len(parts))} | set(parts[1:-1])
            if heads & set(METRICS) and " " not in text:
                found.append(f"{path.relative_to(PACKAGE)}:{line}: {text!r}")
    assert not found, "\n".join(found)


def names(path: Path) -> list[tuple[int, str]]:
    """Return the string constants of a file that are no docstrings, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [node.body[0] for node in ast.walk(tree) if isinstance(node, bodies) and node.body]
    told = {id(first.value) for first in documented if isinstance(first, ast.Expr)}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told)
    return [(n.lineno, n.value) for n in constants if isinstance(n.value, str)]
