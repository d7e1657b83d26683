"""Job overrides to plain configs, each Hydra option composed once and crossed as plain data.

Composing with Hydra costs about 40 ms a config, so a thousand trials would take most of a minute.
A sweep is a product of few options: the base is composed once, each swept ``group=option`` once
beside it, and where an option changes nothing but its own subtree (checked, not assumed) the trial is
the base with that subtree exchanged. Combinations for which that does not hold are composed whole.
Overrides of values that nothing interpolates are put into a copy of the resolved config.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prunelab.config import hydra_inside
from prunelab.config.hydra_inside import Loader, Override, Repository
from prunelab.config.number import canonical_numbers
from prunelab.errors import ConfigError, nearest

Config = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One mistake and the trials that have it."""

    error: ConfigError
    trials: tuple[int, ...]


@dataclass(frozen=True)
class _Crossed:
    """Options composed together: the config, the same as plain data, its interpolations, what went wrong."""

    config: DictConfig
    plain: Any
    interpolated: tuple[str, ...]
    errors: tuple[ConfigError, ...]


@dataclass
class Composer:
    """Composes trials through ``loader`` under the given ``hydra`` overrides; keeps what it composed."""

    loader: Loader
    hydra_overrides: Sequence[str] = ()
    config_name: str = "config"
    _composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)
    _parsed: dict[str, Override] = field(default_factory=dict)
    _contained: dict[tuple[tuple[str, ...], str], bool] = field(default_factory=dict)
    _crossed: dict[tuple[str, ...], _Crossed] = field(default_factory=dict)
    _resolutions: dict[Any, tuple[Any, list[ConfigError]]] = field(default_factory=dict)
    _options: dict[str, list[str]] = field(default_factory=dict)
    _loaded: dict[tuple[str, str], Config] = field(default_factory=dict)

    def trial(self, overrides: Sequence[str]) -> Config:
        """Return the resolved config of one trial, without its ``hydra`` node.

        Raises ConfigError for an unknown option or key.
        """
        errors: list[ConfigError] = []
        config = self._trial(overrides, errors)
        if errors:
            raise errors[0]
        return config

    def trials(self, jobs: Iterable[Sequence[str]]) -> tuple[list[Config], list[Problem]]:
        """Return the config of every job and every mistake found in any of them."""
        configs: list[Config] = []
        found: dict[str, tuple[ConfigError, list[int]]] = {}
        for number, overrides in enumerate(jobs):
            errors: list[ConfigError] = []
            configs.append(self._trial(overrides, errors))
            for error in errors:
                found.setdefault(str(error), (error, []))[1].append(number)
        return configs, [Problem(error, tuple(trials)) for error, trials in found.values()]

    def option(self, group: str, name: str) -> Config:
        """Return one option of a group as plain data, as its YAML file says."""
        if (group, name) not in self._loaded:
            loaded = self._repository.load_config(f"{group}/{name}")
            if loaded is None:
                raise self._unknown_option(group, name)
            plain = OmegaConf.to_container(loaded.config, resolve=False)
            assert isinstance(plain, dict)
            self._loaded[group, name] = {str(key): value for key, value in plain.items()}
        return dict(self._loaded[group, name])

    def options(self, group: str) -> list[str]:
        """Return the names of a group's options."""
        if group not in self._options:
            self._options[group] = list(self._repository.get_group_options(group))
        return self._options[group]

    def _trial(self, overrides: Sequence[str], errors: list[ConfigError]) -> Config:
        groups, values = [], []
        for text in overrides:
            override = self._parse(text)
            if self._is_group(override):
                wrong = self._check_option(override)
                errors.extend(wrong)
                if not wrong:
                    groups.append(text)
            else:
                values.append(override)
        first = {_path(o) for o in values if self._is_early(o, tuple(groups))}
        # of two words for one place the later one counts, so all that touch such a place go the same way
        early = [o for o in values if any(_touch(_path(o), path) for path in first)]
        plain = self._resolved(tuple(groups), early, errors)
        for override in values:
            if override not in early:
                _put(plain, override.get_key_element().split("."), canonical_numbers(override.value()))
        return plain

    def _is_early(self, override: Override, groups: tuple[str, ...]) -> bool:
        """Say whether an override has to be applied by OmegaConf: its key is new, a mapping, or interpolated elsewhere."""
        key, value = override.get_key_element(), override.value()
        if override.is_add() or override.is_delete() or isinstance(value, dict) or "${" in str(value):
            return True
        crossed = self._cross(groups)
        node: Any = crossed.plain
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return True
            node = node[part]
        return isinstance(node, dict) or any(
            part in text for text in crossed.interpolated for part in (key, key.rpartition(".")[2])
        )

    def _resolved(
        self, groups: tuple[str, ...], early: Sequence[Override], errors: list[ConfigError]
    ) -> Config:
        """Return the resolved config under the options and the early overrides; a copy that is the caller's."""
        where = (groups, tuple(override.input_line for override in early))
        if where not in self._resolutions:
            found: list[ConfigError] = list(self._cross(groups).errors)
            config = copy.deepcopy(self._cross(groups).config)
            for override in early:
                self._apply(override, config, found)
            try:
                plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
            except OmegaConfBaseException as error:
                found.append(
                    ConfigError(str(error.full_key), "?", "a value that can be resolved", str(error.msg))
                )
                plain = OmegaConf.to_container(config, resolve=False)
            self._resolutions[where] = (plain, found)
        plain, found = self._resolutions[where]
        errors += found
        return canonical_numbers(plain)

    def _cross(self, groups: tuple[str, ...]) -> _Crossed:
        if groups not in self._crossed:
            errors: list[ConfigError] = []
            config = self._spliced(groups, errors)
            plain = _plain(config)
            self._crossed[groups] = _Crossed(config, plain, tuple(_interpolations(plain)), tuple(errors))
        return self._crossed[groups]

    def _spliced(self, groups: tuple[str, ...], errors: list[ConfigError]) -> DictConfig:
        # overlays (+exp=...) shape everything, so they stay in the base of all other options
        overlays = tuple(text for text in groups if self._parse(text).is_add())
        options = [text for text in groups if not self._parse(text).is_add()]
        try:
            if all(self._own_subtree(overlays, text) for text in options):
                config = copy.deepcopy(self._compose(overlays))
                for text in options:
                    name = self._parse(text).key_or_group
                    OmegaConf.update(
                        config, name, self._compose((*overlays, text))[name], merge=False, force_add=True
                    )
                return config
            return copy.deepcopy(self._compose(groups))
        except (HydraException, OmegaConfBaseException) as error:
            errors.append(ConfigError(" ".join(groups), "?", "options that compose", _reason(error)))
            return copy.deepcopy(self._compose(()))

    def _own_subtree(self, overlays: tuple[str, ...], text: str) -> bool:
        """Say whether the option ``text`` changes nothing outside the subtree of its group."""
        where = (overlays, text)
        if where not in self._contained:
            name = self._parse(text).key_or_group
            with_it, without = self._compose((*overlays, text)), self._compose(overlays)
            others = set(map(str, with_it)) | set(map(str, without))
            self._contained[where] = "/" not in name and all(
                _plain(with_it.get(key)) == _plain(without.get(key)) for key in others if key != name
            )
        return self._contained[where]

    def _compose(self, overrides: tuple[str, ...]) -> DictConfig:
        if overrides not in self._composed:
            whole = hydra_inside.compose(self.loader, self.config_name, [*self.hydra_overrides, *overrides])
            OmegaConf.set_struct(whole, False)
            del whole["hydra"]
            OmegaConf.set_struct(whole, True)
            self._composed[overrides] = whole
        return self._composed[overrides]

    def _apply(self, override: Override, config: DictConfig, errors: list[ConfigError]) -> None:
        try:
            hydra_inside.apply(override, config)
        except (HydraException, OmegaConfBaseException) as error:
            key = override.get_key_element().lstrip("+~")
            known = [*_flat_keys(_plain(config)), *self._groups()]
            close = nearest(key, known) or nearest(key.rpartition(".")[2], known)
            if "." not in key and key not in known:
                allowed = "a group or key of the config"
            elif key in known:
                allowed = "a value Hydra can put there"
                close = _reason(error)
            else:
                group = key.partition(".")[0]
                keys = [name for name in known if name.startswith(f"{group}.")]
                allowed = (
                    f"one of {', '.join(keys)}" if keys else "a key of the config (--cfg job prints them)"
                )
                close = nearest(key, keys)
            errors.append(ConfigError(key, override.get_value_string(), allowed, close))

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = hydra_inside.parse(text)
        return self._parsed[text]

    def _is_group(self, override: Override) -> bool:
        return self._repository.group_exists(override.key_or_group) and not override.is_delete()

    def _check_option(self, override: Override) -> list[ConfigError]:
        group, value = override.key_or_group, override.value()
        known = self.options(group)
        names = value if isinstance(value, list) else [value]
        return [
            self._unknown_option(group, name) for name in names if name is not None and str(name) not in known
        ]

    def _unknown_option(self, group: str, name: object) -> ConfigError:
        known = self.options(group)
        others = [f"{other}={name}" for other in self._groups() if str(name) in self.options(other)]
        # a word that another group has is no misspelling of one that this group has
        hint = f"There is {' and '.join(others)}." if others else nearest(str(name), known)
        return ConfigError(group, name, f"one of {', '.join(known)}", hint)

    def _groups(self) -> list[str]:
        return [group for group in self._repository.get_group_options("", None) if "/" not in group]

    @cached_property
    def _repository(self) -> Repository:
        return hydra_inside.open_repository(self.loader, self.config_name, self.hydra_overrides)


def missing_keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose value is Hydra's ``???``."""
    found = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            found += missing_keys(value, f"{prefix}{key}.")
        elif value == "???":
            found.append(f"{prefix}{key}")
    return found


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def _path(override: Override) -> tuple[str, ...]:
    return tuple(override.get_key_element().lstrip("+~").split("."))


def _touch(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Say whether one path is the other or leads through it."""
    return all(a == b for a, b in zip(one, other, strict=False))


def _put(plain: Config, path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        plain = plain[part]
    plain[path[-1]] = value


def _interpolations(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _interpolations(item)
    elif isinstance(value, list):
        for item in value:
            yield from _interpolations(item)
    elif isinstance(value, str) and "${" in value:
        yield value


def _flat_keys(config: Any, prefix: str = "") -> list[str]:
    if not isinstance(config, Mapping):
        return []
    keys = []
    for key, value in config.items():
        keys += [f"{prefix}{key}", *_flat_keys(value, f"{prefix}{key}.")]
    return keys


def _reason(error: Exception) -> str:
    cause = error.__cause__
    return " ".join(str(error).split()) + (f" ({' '.join(str(cause).split())})" if cause else "")
