"""Which code an option runs: the class behind ``_target_``, and for classes outside the package their source.

What a class of the package computes is tied to its ``revision`` by tests. Of a class from elsewhere nothing is
promised, so the text it is written in is part of every key: that of its module, of its bases' modules, and of what these
import from the same package or folder. Nothing is imported to find it. Libraries that are installed apart from the class
count by their versions, which the record holds.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from prunelab.config.field import base_modules, module_file
from prunelab.errors import ConfigError

SOURCE = "_source_"  # stands beside _target_ in an identity
_PACKAGE = __name__.partition(".")[0]
_LIBRARIES = tuple(
    Path(place).resolve()
    for place in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def with_source(option: Mapping[str, Any]) -> dict[str, Any]:
    """Return an option with the digest of its class' source under ``_source_``, where the class is not the package's.

    Options without a ``_target_`` come back as they are. Raises ConfigError if the module does not exist.
    """
    digest = source_digest(str(option["_target_"])) if "_target_" in option else None
    return dict(option) if digest is None else {**option, SOURCE: digest}


def source_digest(target: str) -> str | None:
    """Return the sha256 over the modules that decide what the class ``target`` computes; None for the package's own."""
    module = target.rpartition(".")[0]
    if _top(module) == _PACKAGE:
        return None
    if module_file(module) is None:  # a digest of nothing would be taken for another source
        hint = f"No module {module!r} on the Python path; go to its folder, or set PYTHONPATH."
        raise ConfigError("_target_", target, "the dotted name of a class", hint)
    whole = hashlib.sha256()
    for name, path in sorted(_modules(module, base_modules(target)).items()):
        text = path.read_bytes()
        whole.update(f"{name}\0{len(text)}\0".encode())
        whole.update(text)
    return whole.hexdigest()


def check_source(option: Mapping[str, Any], key: str) -> None:
    """Raise ConfigError if the class of ``option`` is no longer the one that its key was made of."""
    if SOURCE in option and source_digest(str(option["_target_"])) != option[SOURCE]:
        raise ConfigError(
            f"{key}._target_", option["_target_"], "the source that the study was planned with",
            "Its file was edited since: run the study's command again, it plans anew.",
        )  # fmt: skip


def _modules(module: str, bases: list[str]) -> dict[str, Path]:
    """Return the file of ``module``, of its bases' modules, and of all that they import from around them."""
    files: dict[str, Path] = {}
    waiting = [module, *(base for base in bases if not _is_standard(base))]
    while waiting:
        name = waiting.pop()
        if name in files or _top(name) == _PACKAGE:
            continue
        path = module_file(name)
        if path is None or path.suffix != ".py":
            continue
        files[name] = path
        waiting += [
            other for other in _imported(name, path, path.stat().st_mtime_ns) if _is_near(other, module)
        ]
    return files


def _is_near(name: str, module: str) -> bool:
    """Say whether ``name`` is of the same package as ``module``, or a file of its author's rather than a library's."""
    if _top(name) == _top(module):
        return True
    if _is_standard(name):
        return False
    path = module_file(_top(name))
    return path is not None and not any(path.resolve().is_relative_to(place) for place in _LIBRARIES)


def _is_standard(name: str) -> bool:
    return _top(name) in sys.stdlib_module_names


def _top(name: str) -> str:
    return name.partition(".")[0]


@lru_cache(maxsize=256)
def _imported(module: str, path: Path, mtime: int) -> tuple[str, ...]:
    """Return the dotted names that a file imports anywhere, with the packages they lie in."""
    del mtime  # part of the cache key only
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: dict[str, None] = {}
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        for name in _names_of(node, package):
            parts = name.split(".")
            names |= dict.fromkeys(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return tuple(names)


def _names_of(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".") if package else []
        above = parts[: len(parts) - node.level + 1] if node.level else []
        stem = ".".join([*above, *([node.module] if node.module else [])])
        if stem:
            yield stem
        # `from package import name`: the name may be a module
        yield from (f"{stem}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*")
