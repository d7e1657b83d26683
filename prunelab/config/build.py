"""A checked config entry to an object: import the class that ``_target_`` names, give it the other values."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from prunelab.config.code import SOURCE, check_source
from prunelab.errors import ConfigError


def build(spec: Mapping[str, Any], key: str) -> Any:
    """Build ``{_target_: dotted.Class, **fields}``; lists become tuples, since the classes are frozen.

    Raises ConfigError (naming ``key``) if the class cannot be imported, refuses the fields, or was edited since the
    digest under ``_source_`` was taken.
    """
    check_source(spec, key)
    target = str(spec.get("_target_", ""))
    module, _, name = target.rpartition(".")
    try:
        builder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_", target, "the dotted name of a class", str(error)) from error
    values = {
        k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k not in ("_target_", SOURCE)
    }
    try:
        return builder(**values)
    except TypeError as error:
        raise ConfigError(key, dict(values), f"the fields of {name}", str(error)) from error
