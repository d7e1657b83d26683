"""Numerics ask a pattern or a mask for what they need, never which one it is: a new one opens no pass."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from prunelab.pattern.table import PATTERNS

PACKAGE = Path(__file__).resolve().parents[1] / "prunelab"
NUMERICS = (
    "allocation",
    "evaluation",
    "generalization",
    "importance",
    "information",
    "linalg",
    "methods",
    "models",
    "passes",
    "reconstruction",
    "stages",
    "stats",
    "structures",
)
CLASSES = {kind.__name__ for kind in PATTERNS.values()} | {"Structured", "Elementwise", "Lines", "Elements"}
# the one table of choosers, and the supports of methods, which are names of patterns by their nature
TABLES = {"passes/choosers.py"}


def modules() -> list[Path]:
    return [path for name in NUMERICS for path in sorted((PACKAGE / name).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_asks_for_a_class_or_name(path: Path) -> None:
    asked = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass", "type"):
            names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            asked += [f"line {node.lineno}: {ast.unparse(node)}"] if names & CLASSES else []
        if isinstance(node, ast.Compare):
            words = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            asked += [f"line {node.lineno}: {ast.unparse(node)}"] if words & set(PATTERNS) else []
    if path.relative_to(PACKAGE).as_posix() not in TABLES:
        assert not asked, f"{path}: {asked}"


def test_what_hydra_does_not_offer_publicly_stands_in_one_file() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if any(module.startswith(("hydra._internal", "hydra.core")) for module in modules):
                found.append(path.relative_to(PACKAGE).as_posix())
    assert set(found) == {"config/hydra_inside.py"}
