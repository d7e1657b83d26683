"""Names of zero-shot tasks, read from the files of lm-evaluation-harness without importing it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from prunelab.errors import ConfigError, nearest

CONTINUATION = "continuation_"
_NAME = re.compile(r"^(?:task|group): *[\"']?([\w.-]+)", re.MULTILINE)


def check_tasks(tasks: Any, corpora: Collection[str]) -> Iterator[ConfigError]:
    """Yield an error for each of ``tasks`` that is neither the harness's nor a continuation of one of ``corpora``."""
    own = [f"{CONTINUATION}{name}" for name in corpora]
    for name in tasks if isinstance(tasks, list) else ():
        if name in own:
            continue
        known = own if str(name).startswith(CONTINUATION) else [*own, *harness_tasks()]
        if name not in known:
            allowed = f"{', '.join(own)}, or tasks of lm-evaluation-harness"
            yield ConfigError("evaluation.tasks", name, allowed, nearest(str(name), known))


@lru_cache(maxsize=1)
def harness_tasks() -> frozenset[str]:
    """Return every task and group name that the installed harness defines; about a second."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        return frozenset()
    names: set[str] = set()
    for path in (Path(spec.origin).parent / "tasks").rglob("*.yaml"):
        names.update(_NAME.findall(path.read_text(encoding="utf-8", errors="replace")))
    return frozenset(names)
