"""Words that Hydra's grammar cannot read, in the quoted form that it can: ``=``, ``~`` and the like in values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hydra.errors import HydraException

from prunelab.config import hydra_inside
from prunelab.errors import ConfigError


def unreadable(words: Sequence[str]) -> ConfigError | None:
    """Return the mistake of the first override that Hydra cannot read though quotes would mend it, None if there is none."""
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-") or _reads(word):
            continue
        quoted = f"{key}={_quoted(key, value)}"
        if _reads(quoted):
            hint = f"Quote it, for Hydra inside and for the shell outside: {shlex.quote(quoted)}"
            return ConfigError(
                key, value, "a value of Hydra's grammar, in which = ~ and the like stand in quotes", hint
            )
    return None


def _quoted(key: str, value: str) -> str:
    """Quote what needs it: items of a list or of a sweep by themselves, else the whole value."""
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if "," in inside or inside != value:
        items = [item if _reads(f"{key}={item}") else _one(item) for item in inside.split(",")]
        listed = ",".join(items)
        return f"[{listed}]" if inside != value else listed
    return _one(value)


def _one(text: str) -> str:
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _reads(word: str) -> bool:
    try:
        hydra_inside.parse(word)
    except HydraException:
        return False
    return True
