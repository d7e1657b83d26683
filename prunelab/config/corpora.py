"""The corpora of a trial: by the names of options or by paths of files, and whether they can serve the roles they are given.

A file named by its path is a corpus that serves one role with all of its text; its name is the file's stem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunelab.config.compose import Composer, Config
from prunelab.config.data import SAME, corpora_of, parts_of
from prunelab.config.domain import KEY as DOMAINS
from prunelab.config.domain import domains_of
from prunelab.config.files import TEXT_SUFFIXES, check_text_file, token_shape
from prunelab.errors import ConfigError, nearest
from prunelab.split import of_split, row_range, split_of

MEASURED = {
    "corpora": "test",
    "held_out": "held_out",
}  # lists of evaluation and the role that their corpora serve
_OF_FILES = ("text", "tokens")
_FITTED = ("mask", "reconstruction")


def with_paths(values: Mapping[str, Any], composer: Composer) -> tuple[Config, dict[str, Config]]:
    """Return an evaluation with names in the place of paths, and the unchecked specs of the files by those names."""
    names: dict[str, str] = {}
    specs: dict[str, Config] = {}
    result = dict(values)
    for key in MEASURED:
        if isinstance(values.get(key), list):
            result[key] = [_named(entry, composer, names, specs) for entry in values[key]]
    return result, specs


def _named(entry: Any, composer: Composer, names: dict[str, str], specs: dict[str, Config]) -> Any:
    known = composer.options("calibration")
    if not isinstance(entry, str) or entry in known or not _is_path(entry):
        return entry
    place = Path(entry).expanduser().absolute()
    if str(place) not in names:
        taken = {*known, *specs}
        name = next(name for name in _candidates(place) if name not in taken)
        option = composer.option("calibration", "tokens" if place.suffix == ".npy" else "text")
        names[str(place)] = name
        specs[name] = {**option, "name": name, "path": str(place), "split": "all", "sampler": "sequential"}
    return names[str(place)]


def _is_path(entry: str) -> bool:
    return "/" in entry or entry.endswith((*TEXT_SUFFIXES, ".npy"))


def _candidates(place: Path) -> Iterator[str]:
    stem, above = (
        re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-.") or "file"
        for word in (place.stem, place.parent.name)
    )
    yield from (stem, f"{above}-{stem}")
    number = 2
    while True:
        yield f"{above}-{stem}-{number}"
        number += 1


def check_roles(config: Config, corpora: Mapping[str, Config]) -> Iterator[ConfigError]:
    """Yield what keeps a trial's corpora from their roles: text that is fitted and measured on, too few rows, short rows."""
    fitted: list[tuple[str, Config, str]] = []
    for key, spec, role, count, length in _uses(config, corpora):
        try:
            split = split_of(spec, role)
        except ConfigError as error:
            yield error
            continue
        if role in _FITTED:
            fitted.append((key, spec, split))
        elif other := next((key for key, *fit in fitted if _share(fit, [spec, split])), None):
            hint = (
                f"{other} fits to the same text. Give each role a part of it, "
                "calibration.split={mask:train,held_out:validation,test:test}, or measure on another."
            )
            yield ConfigError(key, spec["name"], "text that nothing was fitted to", hint)
            continue
        if spec["source"] == "tokens":
            yield from _check_shape(key, spec, role, split, count, length)


def _share(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Say whether two (corpus, split) have text in common."""
    places = [[spec["source"], spec.get("path") or spec.get("id"), of_split(spec.get("files"), split)]
              for spec, split in (one, other)]  # fmt: skip
    return places[0] == places[1] and (one[1] == other[1] or "all" in (one[1], other[1]))


def _uses(config: Config, corpora: Mapping[str, Config]) -> Iterator[tuple[str, Config, str, int, int]]:
    """Yield (key, spec, role, least windows, tokens of a window) of all that a trial reads."""
    own, evaluation = config["calibration"], config["evaluation"]
    yield "calibration", own, "mask", own["n_samples"], own["seq_len"]
    for name in domains_of(config):
        yield DOMAINS, corpora[name], "mask", own["n_samples"], own["seq_len"]
    if config["reconstruction"]["name"] != "none":
        data = config["reconstruction_data"]
        for name, count in parts_of(data.get("parts"), own["n_samples"]).items():
            if name != SAME and name in corpora_of(data):
                yield (
                    f"reconstruction_data.parts.{name}",
                    corpora[name],
                    "reconstruction",
                    count,
                    own["seq_len"],
                )
    for key, role in MEASURED.items():
        least = evaluation["error_samples"] if role == "held_out" else 1
        for name in evaluation[key]:
            yield f"evaluation.{key}", corpora[name], role, least, evaluation["seq_len"]


def _check_shape(
    key: str, spec: Config, role: str, split: str, count: int, length: int
) -> Iterator[ConfigError]:
    n_rows, columns = token_shape(Path(spec["path"]))
    rows, name = len(row_range(n_rows, split)), Path(spec["path"]).name
    whose = "evaluation" if role in MEASURED.values() else "calibration"
    if length > columns:
        yield ConfigError(f"{whose}.seq_len", length, f"at most {columns}, the length of a row of {name}")
    if count > rows:
        windows = {"mask": "calibration.n_samples", "held_out": "evaluation.error_samples"}.get(role, key)
        part = "" if split == "all" else f" that its split {split!r} has"
        yield ConfigError(
            windows, count, f"at most {rows}, the rows of {name}{part}", f"It has {n_rows} in all."
        )


def specs_of(
    config: Config, brought: Mapping[str, Config], composer: Composer
) -> Iterator[tuple[str, Config | ConfigError]]:
    """Yield the unchecked spec of each corpus that a trial reads beside its own, or what is wrong with its name."""
    evaluation, own, known = (
        config.get("evaluation", {}),
        config.get("calibration"),
        composer.options("calibration"),
    )
    keys: dict[Any, str] = {}
    for key in MEASURED:
        names = evaluation.get(key) or []
        for name in names if isinstance(names, list) else ():  # what is no list is told as such
            keys.setdefault(name, f"evaluation.{key}")
    for name in corpora_of(config.get("reconstruction_data")):
        if name in known:  # others are told where parts are checked
            keys.setdefault(name, "reconstruction_data.parts")
    for name in domains_of(config):
        if name in known:
            keys.setdefault(name, DOMAINS)
    for name, key in keys.items():
        if name in brought:
            yield name, brought[name]
        elif name not in known:
            allowed = f"names of calibration options ({', '.join(known)}) or paths of files"
            yield name, ConfigError(key, name, allowed, nearest(str(name), known))
        elif isinstance(own, Mapping) and own.get("name") == name and own.get("source") in _OF_FILES:
            yield name, dict(own)  # the file of this trial, which the option alone does not know
        else:
            yield name, composer.option("calibration", name)


def check_own_files(config: Config, corpora: Mapping[str, Config]) -> None:
    """Raise ConfigError for the first file of a trial's corpora that cannot be read."""
    for key, spec in {
        "calibration": config["calibration"],
        **{f"calibration/{n}": s for n, s in corpora.items()},
    }.items():
        if spec["source"] in _OF_FILES:
            check_text_file(f"{key}.path", spec["path"], spec["source"], spec.get("column") or "text")
