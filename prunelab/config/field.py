"""The fields of a dataclass, read from its source: names, types and bounds without importing torch.

A method's class says what a value may be where it is used::

    damping_input: Annotated[float, "x >= 0"]
    correlation: Annotated[str, "full | independent"]
    step: Annotated[float | None, "0 < x <= 1"]

Planning reads these lines from the file's syntax tree, so a mistake is reported before anything
heavy is imported; the class is only built inside the job.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import math
import operator
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from prunelab.errors import ConfigError

_PACKAGE = __name__.partition(".")[0]
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_BOUND = re.compile(
    r"^(?:(?P<low>[-+.\de]+)\s*(?P<lop><=?)\s*)?x\s*(?:(?P<hop><=?|>=?)\s*(?P<high>[-+.\de]+))?$"
)


@dataclass(frozen=True)
class Field:
    """One field: its ``types`` (names such as ``float``, ``None``) and its ``bound`` as written."""

    name: str
    types: tuple[str, ...]
    bound: str
    required: bool

    @property
    def allowed(self) -> str:
        """What the value may be, in words."""
        names = {"float": "a number", "int": "an integer", "str": "a string", "bool": "true or false"}
        names |= {"None": "null", "dict": "a mapping", "list": "a list", "tuple": "a list"}
        kinds = " or ".join(names.get(kind, kind) for kind in self.types)
        if "|" in self.bound or (self.bound and self.types[0] == "str"):
            kinds = (
                ("a list of " if self.types[0] in ("list", "tuple") else "one of ")
                + self.bound.replace(" | ", ", ")
                + (" or null" if "None" in self.types else "")
            )
            return kinds
        return f"{kinds}, {self.bound}" if self.bound else kinds

    def check(self, key: str, value: Any) -> Any:
        """Return ``value`` in the field's type (1 becomes 1.0 for a float); raise ConfigError otherwise."""
        if value is None and "None" in self.types:
            return None
        kinds = [kind for kind in self.types if _is_a(kind, value)]
        if value is None or not kinds:
            raise ConfigError(key, value, self.allowed)
        items = value if kinds[0] in ("list", "tuple") else [value]  # a list's bound is of its entries
        if self.bound and not all(_within(self.bound, item) for item in items):
            raise ConfigError(key, value, self.allowed)
        if kinds[0] in ("list", "tuple"):
            return list(value)
        return float(value) if kinds[0] == "float" else value


_PLAIN = ("Protocol", "Generic", "ABC", "object")  # bases that bring no fields
_GROUP = "Group"  # the base of a config's groups, in the same file: prunelab.config.schema


@dataclass(frozen=True)
class ClassSource:
    """What the source of a class and of its bases says: fields, literal class attributes, and names of everything."""

    fields: Mapping[str, Field]
    literals: Mapping[str, Any]
    names: frozenset[str] = frozenset()


def _is_a(kind: str, value: Any) -> bool:
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in ("list", "tuple"):
        return isinstance(value, list | tuple)
    expected = {"str": str, "bool": bool, "dict": dict}.get(kind)
    return kind == "Any" or (expected is not None and isinstance(value, expected))


def _within(bound: str, value: Any) -> bool:
    if isinstance(value, str):
        return value in [choice.strip() for choice in bound.split("|")]
    match = _BOUND.match(bound.strip())
    if match is None:
        raise ConfigError(
            "bound", bound, "'low < x < high', either side optional, or 'a | b | c' for strings"
        )
    low = match["low"] is None or _COMPARE[_FLIPPED[match["lop"]]](value, float(match["low"]))
    return low and (match["high"] is None or _COMPARE[match["hop"]](value, float(match["high"])))


def read_class(target: str, key: str = "_target_") -> ClassSource:
    """Read the class that the dotted name ``target`` means, without importing its module.

    Raises ConfigError (naming ``key``) if the module or the class does not exist.
    """
    own = _class(target, key)[0]
    for base in reversed(_bases(target, key)):
        with suppress(ConfigError):  # a base that its package only passes on: what stands here has to do
            above = read_class(base, key)
            own = ClassSource(
                {**above.fields, **own.fields}, {**above.literals, **own.literals}, above.names | own.names
            )
    return own


def _bases(target: str, key: str) -> list[str]:
    """Return the dotted names of a class' bases, as far as its file says where they come from."""
    module, _, name = target.rpartition(".")
    _, bases, classes, imported = _class(target, key)
    # `class Wanda(Wanda)` means the imported one
    found = [
        f"{module}.{base}" if base in classes and base != name else imported.get(base, "") for base in bases
    ]
    return [where for base, where in zip(bases, found, strict=True) if where and base not in _PLAIN]


def _class(target: str, key: str) -> tuple[ClassSource, list[str], list[str], dict[str, str]]:
    """Return what a class' file says of it: its own lines, its bases, the file's classes, what imported names mean."""
    module, _, name = target.rpartition(".")
    path = module_file(module)
    if path is None:
        raise ConfigError(
            key,
            target,
            "the dotted name of a class",
            f"No module {module!r} on the Python path; is it installed?",
        )
    classes, imported = _classes(path, path.stat().st_mtime_ns)
    if name not in classes:
        raise ConfigError(key, target, f"a class of {path.name}: {', '.join(classes) or 'it has none'}")
    return *classes[name], list(classes), imported


def base_modules(target: str) -> list[str]:
    """Return the modules that define the bases of a class, and their bases; [] for an unknown class."""
    modules: dict[str, None] = {}
    with suppress(ConfigError):
        for base in _bases(target, "_target_"):
            with suppress(ConfigError):
                _class(base, "_target_")
                modules |= dict.fromkeys([base.rpartition(".")[0], *base_modules(base)])
    return list(modules)


def module_file(module: str) -> Path | None:
    """Return the file of a module, found without importing it or its packages; None if there is none."""
    # the package's own stay where they are while a process runs, and are asked for several times per trial
    return _own_file(module) if module.partition(".")[0] == _PACKAGE else _find(module)


def _find(module: str) -> Path | None:
    # find_spec('a.b') imports the package a; walking the parts by hand keeps a heavy __init__ out.
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    for part in parts[1:]:
        places = list(spec.submodule_search_locations or []) if spec else []
        spec = importlib.machinery.PathFinder.find_spec(part, places)
        if spec is None:
            return None
    return Path(spec.origin) if spec.origin else None


@lru_cache(maxsize=256)
def _own_file(module: str) -> Path | None:
    return _find(module)


@lru_cache(maxsize=256)
def _classes(path: Path, mtime: int) -> tuple[dict[str, tuple[ClassSource, list[str]]], dict[str, str]]:
    """Return the classes of a file with the names of their bases, and what imported names stand for."""
    del mtime  # part of the cache key only
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }
    found = {
        node: [ast.unparse(base) for base in node.bases]
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    groups = {node.name for node, bases in found.items() if _GROUP in bases}
    return {node.name: (_read(node, groups), bases) for node, bases in found.items()}, imported


def _read(node: ast.ClassDef, groups: Collection[str]) -> ClassSource:
    """Read a class; fields that are one of ``groups`` are mappings in a config."""
    fields: dict[str, Field] = {}
    literals: dict[str, Any] = {}
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            if _is_class_var(line.annotation):
                if line.value is not None:
                    _add_literal(literals, line.target.id, line.value)
                continue
            kinds, bound = _annotation(line.annotation)
            kinds = tuple("dict" if kind in groups else kind for kind in kinds)
            fields[line.target.id] = Field(line.target.id, kinds, bound, line.value is None)
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            _add_literal(literals, line.targets[0].id, line.value)
    functions = (line.name for line in node.body if isinstance(line, ast.FunctionDef))
    return ClassSource(fields, literals, frozenset([*fields, *literals, *functions]))


def _add_literal(literals: dict[str, Any], name: str, value: ast.expr) -> None:
    if (
        isinstance(value, ast.Call)
        and ast.unparse(value.func) in ("frozenset", "set", "tuple")
        and value.args
    ):
        value = value.args[0]
    try:
        literals[name] = ast.literal_eval(value)
    except ValueError:
        if ast.unparse(value) in ("frozenset()", "set()", "tuple()"):
            literals[name] = ()


def _is_class_var(node: ast.expr) -> bool:
    return ast.unparse(node).split("[")[0].endswith("ClassVar")


def _annotation(node: ast.expr) -> tuple[tuple[str, ...], str]:
    bound = ""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Annotated"):
        assert isinstance(node.slice, ast.Tuple)
        node, *notes = node.slice.elts
        bound = next((n.value for n in notes if isinstance(n, ast.Constant) and isinstance(n.value, str)), "")
    text = ast.unparse(node)
    return tuple(part.strip().split("[")[0] for part in text.split(" | ")), bound
