"""All that prunelab takes of Hydra beside its public face: a new Hydra breaks this file and no other.

Hydra offers no way to compose many configs cheaply, to ask which options a group has, to split a command line into the jobs
of its sweep, or to bring plugins without a second top-level package; these are its own functions for that (Hydra 1.3).
"""

from __future__ import annotations

import copy
import importlib
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository as Repository
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig

__all__ = ["JobReturn", "Override", "Repository"]


class Loader(ConfigLoaderImpl):
    """Hydra's loader, which reads each YAML file once for all configs it composes instead of once for each.

    Reading is two fifths of a composition. Overrides of ``hydra.*`` may move the search path, so each set of them has
    files of its own. Hydra puts the nodes of files without a package into the config it composes and changes them there;
    it gets copies, so that a value of one config is not found in the next.
    """

    def __init__(self, config_search_path: Any) -> None:
        super().__init__(config_search_path)
        self._files: dict[tuple[str, ...], dict[str, Any]] = {}

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], Repository]:
        parsed = parse_all(overrides)
        repository = Repository(self.repository)
        moving = tuple(word for word in overrides if word.lstrip("+~").startswith("hydra"))
        repository.cache = self._files.setdefault((str(config_name), *moving), {})
        self._process_config_searchpath(config_name, parsed, repository)
        return parsed, repository

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        loaded = super()._load_single_config(default, repo)
        if loaded.config is repo.load_config(config_path=default.config_path).config:
            return replace(loaded, config=copy.deepcopy(loaded.config))
        return loaded


def remembering(loader: ConfigLoaderImpl) -> Loader:
    """Return a loader of the same places that reads each file once."""
    return Loader(loader.config_search_path)


def open_loader(folder: Path | str, before: Path | str | None = None) -> Loader:
    """Return what composes configs of ``folder``, and of ``before`` ahead of it (Hydra's --config-dir)."""
    path = create_automatic_config_search_path(None, None, str(folder))
    if before is not None:
        place = f"file://{Path(before).absolute()}"
        path.prepend("command-line", place, SearchPathQuery(provider="schema", path=None))
    return Loader(path)


def compose(loader: Loader, name: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config ``name`` under ``overrides``, the ``hydra`` node included, as one run would have it."""
    return loader.load_configuration(
        config_name=name, overrides=list(overrides), run_mode=RunMode.RUN, from_shell=False, validate_sweep_overrides=False,
    )  # fmt: skip


def open_repository(loader: Loader, name: str, overrides: Sequence[str]) -> Repository:
    """Return the files of groups and options that ``name`` is composed of."""
    return loader._parse_overrides_and_create_caching_repo(name, list(overrides))[1]


def apply(override: Override, config: DictConfig) -> None:
    """Put an override's value into a composed config; raises HydraException for a key that it lacks."""
    Loader._apply_overrides_to_config([override], config)


def parse(word: str) -> Override:
    """Return one word of a command line as an override; raises HydraException if it is none."""
    return OverridesParser.create().parse_override(word)


def parse_all(words: Iterable[str], loader: Loader | None = None) -> list[Override]:
    """Return words of a command line as overrides; with ``loader`` those that sweep groups by glob can be split."""
    return OverridesParser.create(config_loader=loader).parse_overrides(list(words))


def split_jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each job of a sweep: the product of all choices, as Hydra's basic sweeper makes it."""
    return [list(job) for job in _basic_sweeper().split_arguments(list(overrides), None)[0]]


def parse_command_line(words: Sequence[str]) -> Namespace:
    """Return Hydra's view of a command line: flags by name, and ``overrides``."""
    return get_args_parser().parse_args(list(words))


def basic_sweeper() -> type:
    """Return the class of Hydra's basic sweeper, to derive from.

    The scan for plugins executes Hydra's own plugin modules anew, so a class that was imported before it is stale.
    """
    Plugins.instance()
    return _basic_sweeper()


def _basic_sweeper() -> Any:
    return importlib.import_module("hydra._internal.core_plugins.basic_sweeper").BasicSweeper


def register(name: str, module: ModuleType, plugins: Iterable[type]) -> None:
    """Make ``plugins`` of ``module`` known to Hydra, and importable, as ``hydra_plugins.<name>``: it accepts no other names."""
    whole = f"hydra_plugins.{name}"
    try:
        namespace = importlib.import_module("hydra_plugins")  # there if any other plugin is installed
    except ImportError:
        namespace = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules[whole] = module
    setattr(namespace, name, module)
    for plugin in plugins:
        plugin.__module__ = whole
        Plugins.instance().register(plugin)  # type: ignore[arg-type]


def completed(overrides: Sequence[str], value: Any) -> JobReturn:
    """Return what Hydra expects of a launcher for a job that ran."""
    result = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    result.return_value = value
    return result
