"""What tests take from the project's own conf folder: options as data, the objects they build, and one composer."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from typing import Any

import yaml

from prunelab.config.compose import Composer
from prunelab.config.hydra_inside import open_loader
from prunelab.config.place import conf_folder
from prunelab.launch.command.plugin import register


def option(group: str, name: str, /, **changes: Any) -> dict[str, Any]:
    """Return the values of ``conf/<group>/<name>.yaml``, with ``changes`` over them."""
    return yaml.safe_load((conf_folder() / group / f"{name}.yaml").read_text(encoding="utf-8")) | changes


def build(group: str, name: str, /, **changes: Any) -> Any:
    """Return the object of ``conf/<group>/<name>.yaml``; ``changes`` replace its fields."""
    config = option(group, name)
    module, _, cls = config.pop("_target_").rpartition(".")
    return replace(getattr(importlib.import_module(module), cls)(**config), **changes)


def option_names(group: str) -> list[str]:
    """Return the names of a group's YAML files, sorted."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


@cache
def composer() -> Composer:
    """Return the one composer of this process: it remembers what it composed, which costs Hydra 0.1 s a config."""
    register()
    return Composer(open_loader(conf_folder()))
