"""Every mistake of a composed trial, found without torch and before anything is queued."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunelab.config.compose import Composer, Config, missing_keys
from prunelab.config.contract import check_method, check_windows, method_facts
from prunelab.config.corpora import check_own_files, check_roles, specs_of, with_paths
from prunelab.config.data import SAME, check_parts
from prunelab.config.domain import check_domains
from prunelab.config.field import ClassSource, read_class
from prunelab.config.files import (
    check_family_file,
    check_model_folder,
    input_widths,
    model_name,
    n_blocks,
    neurons,
    positions,
)
from prunelab.config.outside import OWN_METRICS, STAGES, outside_source
from prunelab.config.repair import about_between_shots, about_repair, is_whole
from prunelab.config.schema import Evaluation
from prunelab.config.supply import supplies
from prunelab.config.tasks import check_tasks
from prunelab.config.tracking import tracking_errors
from prunelab.config.vary import own_choices
from prunelab.errors import ConfigError, PrunelabError, nearest
from prunelab.pattern.base import (
    BEFORE,
    BETWEEN,
    BY_METHOD,
    BY_PATTERN,
    ROUNDED,
    UNIFORM,
    Run,
    between_error,
)
from prunelab.pattern.table import pattern_of, times_speed
from prunelab.pattern.units import Units

_SCHEMA = "prunelab.config.schema"
GROUPS = (
    "model", "calibration", "sparsity", "allocation", "between_shots", "reconstruction", "reconstruction_data", "evaluation",
    "tracking", "runtime", "paths",
)  # fmt: skip
_OPEN = (
    "allocation",
    "between_shots",
    "reconstruction",
)  # options may bring a class of their own, as methods do


def check_trial(
    config: Config, composer: Composer, *, whole: bool = True
) -> tuple[Config, dict[str, Config], list[ConfigError]]:
    """Check one trial; return it with values in their types, the specs of its evaluation corpora, its mistakes.

    Not ``whole``: an override could not be composed and a default stands in its place, so that nothing is said of
    what fits together.
    """
    errors: list[ConfigError] = []
    config = _checked("", config, read_class(f"{_SCHEMA}.Trial"), errors)
    _absolute(config)
    for group in GROUPS:
        if isinstance(config.get(group), Mapping):
            config[group] = _checked(group, config[group], _class_of(group, config[group], errors), errors)
    if isinstance(config.get("model"), Mapping) and config["model"].get("name") is None:
        config["model"] = {**config["model"], "name": model_name(config["model"])}
    if isinstance(config.get("method"), Mapping):
        config["method"] = _check_method(config, errors)
    _settle(config)
    if isinstance(config.get("stages"), Mapping):
        config["stages"] = _check_outside(STAGES, config["stages"], errors)
    if isinstance(config.get("reconstruction"), Mapping) and config["reconstruction"].get("name") == "none":
        config["reconstruction_data"] = {
            "name": SAME
        }  # nothing is fitted: trials that differ only here are one
    brought: dict[str, Config] = {}
    if isinstance(config.get("evaluation"), Mapping):
        config["evaluation"], brought = with_paths(config["evaluation"], composer)
        if isinstance(own := config["evaluation"].get("metrics"), Mapping):
            config["evaluation"]["metrics"] = _check_outside(OWN_METRICS, own, errors)
    corpora = _corpora(config, composer, brought, errors)
    _exact_ratio(config)
    if isinstance(config.get("sparsity"), Mapping) and config["sparsity"].get("ratio") == 0:
        config["between_shots"] = {
            "name": "none"
        }  # a dense model has no shots: trials that differ only here are one
    wrong = {error.key.partition(".")[0] for error in errors}
    if whole and not wrong:
        _resolve_masks(config)
        errors += _across_groups(config)
    if not wrong & {
        "model",
        "calibration",
        "evaluation",
        "reconstruction",
        "reconstruction_data",
        "domains",
    }:
        errors += _about_files(config, corpora)
    errors += tracking_errors(config)
    return config, corpora, errors


def _absolute(config: Config) -> None:
    """Make paths of files and folders absolute: jobs run in other folders."""
    calibration, model = config.get("calibration"), config.get("model")
    if isinstance(calibration, Mapping):
        config["calibration"] = _with_absolute(calibration, "path")
    if isinstance(model, Mapping):
        model = _with_absolute(model, "family")
        config["model"] = _with_absolute(model, "id") if model.get("source") == "local" else model


def _with_absolute(values: Mapping[str, Any], key: str) -> Config:
    path = values.get(key)
    if not isinstance(path, str) or path in ("", "???"):
        return dict(values)
    return {**values, key: str(Path(path).expanduser().absolute())}


def _exact_ratio(config: Config) -> None:
    """Put the ratio that n:m removes in the place of null, or of its rounded decimals."""
    sparsity = config.get("sparsity")
    if not isinstance(sparsity, Mapping):
        return
    ratio, n, m = (sparsity.get(key) for key in ("ratio", "n", "m"))
    if not (isinstance(n, int) and isinstance(m, int) and 0 < n < m):
        return
    if ratio is None or (isinstance(ratio, float) and abs(ratio - (1 - n / m)) <= ROUNDED):
        config["sparsity"] = {**sparsity, "ratio": 1 - n / m}


def _settle(config: Config) -> None:
    """Put in place what a trial leaves to its method and pattern: allocation, stream, compensation, kinds of units."""
    sparsity, allocation = config.get("sparsity"), config.get("allocation")
    if not isinstance(sparsity, Mapping) or not isinstance(config.get("method"), Mapping):
        return
    own = own_choices(config)
    if isinstance(allocation, Mapping) and allocation.get("name") == "by_pattern":
        config["allocation"] = {"name": own.get("allocation.name", UNIFORM)}
    settled: Config = {
        key: own.get(f"sparsity.{key}", default)
        for key, default in (("propagation", "pruned"), ("compensation", "none"))
        if sparsity.get(key) == BY_METHOD
    }
    if sparsity.get("kinds") is None and sparsity.get("pattern") == Units.name:
        settled["kinds"] = own["sparsity.kinds"]
    config["sparsity"] = {**sparsity, **settled}


def _resolve_masks(config: Config) -> None:
    """Say when masks are chosen where a repair leaves that to the pattern: between repairs, as its paper, if they can."""
    if config["reconstruction"].get("masks") == BY_PATTERN:
        apart = is_whole(config["reconstruction"]) or _between_error(config) is not None
        masks = BEFORE if apart else BETWEEN
        config["reconstruction"] = {**config["reconstruction"], "masks": masks}


def _between_error(config: Config) -> ConfigError | None:
    """Return why masks cannot be chosen between repairs; a pattern that cannot be is told as what it is."""
    sparsity = config["sparsity"]
    with suppress(ConfigError):
        propagation = sparsity.get("propagation", "pruned")
        return between_error(pattern_of(sparsity), config["allocation"]["name"], propagation)
    return None


def method_source(method: Mapping[str, Any]) -> ClassSource:
    """Return fields, ``needs`` and ``supports`` of a method's class, read from its source."""
    return read_class(str(method.get("_target_", "")), "method._target_")


def _class_of(group: str, values: Mapping[str, Any], errors: list[ConfigError]) -> ClassSource:
    if group in _OPEN and "_target_" in values:
        try:
            return read_class(str(values["_target_"]), f"{group}._target_")
        except ConfigError as error:
            errors.append(error)
    return read_class(f"{_SCHEMA}.{group.title().replace('_', '')}")


def _checked(group: str, values: Mapping[str, Any], source: ClassSource, errors: list[ConfigError]) -> Config:
    prefix = f"{group}." if group else ""
    result: Config = {}
    for key in missing_keys({k: v for k, v in values.items() if not isinstance(v, Mapping)}):
        field = source.fields.get(key)
        errors.append(
            ConfigError(
                prefix + key, "???", field.allowed if field else "a value", f"Set it: {prefix}{key}=..."
            )
        )
    for key, value in values.items():
        if key == "_target_" or (isinstance(value, str) and value == "???"):
            result[key] = value
        elif key not in source.fields:
            known = list(source.fields)
            errors.append(
                ConfigError(
                    prefix + key,
                    value,
                    f"a key of {group or 'the config'}: {', '.join(known)}",
                    nearest(key, known),
                )
            )
        else:
            try:
                result[key] = source.fields[key].check(prefix + key, value)
            except ConfigError as error:
                errors.append(error)
                result[key] = value
    for key, field in source.fields.items():
        if key not in values and field.required:
            errors.append(
                ConfigError(prefix + key, "(nothing)", field.allowed, f"Add it to the YAML file of {group}.")
            )
    return result


def _check_method(config: Config, errors: list[ConfigError]) -> Config:
    method = config["method"]
    try:
        source = method_source(method)
    except ConfigError as error:
        errors.append(error)
        return method
    errors += check_method(method, source)
    return _checked("method", method, source, errors)


def _check_outside(group: str, options: Mapping[str, Any], errors: list[ConfigError]) -> Config:
    """Check the fields of classes from outside the package; what such a class has to be is said elsewhere."""
    checked: Config = {}
    for name, option in options.items():
        checked[name] = option
        if isinstance(option, Mapping) and "_target_" in option:
            try:
                checked[name] = _checked(
                    f"{group}.{name}", option, outside_source(group, str(name), option), errors
                )
            except ConfigError:
                continue  # told by the check of the class
    return checked


def _corpora(
    config: Config, composer: Composer, brought: Mapping[str, Config], errors: list[ConfigError]
) -> dict[str, Config]:
    """Return the checked specs of the corpora that a trial names; ``brought`` are those of files named by paths."""
    evaluation, specs = config.get("evaluation", {}), {}
    for name, spec in specs_of(config, brought, composer):
        if isinstance(spec, ConfigError):
            errors.append(spec)
        else:
            source = read_class(f"{_SCHEMA}.Calibration")
            specs[name] = _checked(f"calibration/{name}", _with_absolute(spec, "path"), source, errors)
    if isinstance(evaluation.get("corpora"), list) and not evaluation["corpora"]:
        errors.append(ConfigError("evaluation.corpora", [], "at least one corpus"))
    known = composer.options("calibration")
    if evaluation.get("tasks"):
        embedded = [name for name in known if composer.option("calibration", name)["source"] == "embedded"]
        errors += check_tasks(evaluation["tasks"], embedded)
    errors += check_parts(config, known)
    errors += check_domains(config, known)
    return specs


def _across_groups(config: Config) -> Iterator[ConfigError]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", config["study"]):
        yield ConfigError("study", config["study"], "letters, digits, '.', '_', '-' (it names a folder)")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config["runtime"]["device"]):
        yield ConfigError("runtime.device", config["runtime"]["device"], "auto, cpu, cuda, cuda:N or mps")
    yield from _about_sparsity(config)
    yield from about_repair(config, _between_error(config))
    yield from about_between_shots(config)
    model = config["model"]
    if model["source"] == "hub" and not re.fullmatch(r"[0-9a-f]{40}", model["revision"] or ""):
        hint = "Branches and tags move, and with them the numbers."
        yield ConfigError("model.revision", model["revision"], "a commit of the hub, 40 hex digits", hint)
    yield from _about_text(config)
    longest = positions(model)
    for key in ("calibration", "evaluation"):
        length = config[key]["seq_len"]
        if longest is not None and length > longest:
            yield ConfigError(
                f"{key}.seq_len", length, f"at most {longest}, the context of {config['model']['name']}"
            )
    yield from _about_speed(config, longest)


def _about_speed(config: Config, longest: int | None) -> Iterator[ConfigError]:
    """What is read and written to time a model has to fit its context, ``longest`` where that is known."""
    evaluation = config["evaluation"]
    lengths = (
        evaluation.get("speed_prompt", Evaluation.speed_prompt),
        evaluation.get("speed_tokens", Evaluation.speed_tokens),
    )
    if longest is None or sum(lengths) <= longest:
        return
    with suppress(ConfigError):  # a pattern that cannot be is told as what it is
        if times_speed(evaluation.get("speed"), pattern_of(config["sparsity"])):
            allowed = f"together at most {longest}, the context of {config['model']['name']}"
            hint = "Or do without: evaluation.speed=false."
            yield ConfigError("evaluation.speed_prompt, evaluation.speed_tokens", lengths, allowed, hint)


def _about_text(config: Config) -> Iterator[ConfigError]:
    calibration, model = config["calibration"], config["model"]
    tokens, split = calibration["source"] == "tokens", calibration["split"]
    if calibration["sampler"] == "rows" and not tokens:
        yield ConfigError("calibration.sampler", "rows", "random_windows | sequential | documents for text")
    if isinstance(split, str) and split not in ("train", "all"):
        hint = "Validation and test text are for measuring; to move roles, map them: {mask: train, ...}."
        yield ConfigError("calibration.split", split, "train | all | null | a split by role", hint)
    if model["source"] == "random" and not tokens:
        hint = "It has no tokenizer: calibration=tokens."
        yield ConfigError("calibration", calibration["name"], "tokens with model=random", hint)


def _about_files(config: Config, corpora: Mapping[str, Config]) -> Iterator[ConfigError]:
    try:
        family = config["model"].get("family")
        if family is not None:
            check_family_file("model.family", family)
        if config["model"]["source"] == "local":
            check_model_folder("model.id", config["model"]["id"], family)
        check_own_files(config, corpora)
        yield from check_roles(config, corpora)
    except ConfigError as error:
        yield error
    except PrunelabError as error:
        yield ConfigError("paths", "?", "readable files", str(error))


def _about_sparsity(config: Config) -> Iterator[ConfigError]:
    method, sparsity, model = config["method"], config["sparsity"], config["model"]
    try:
        pattern = pattern_of(sparsity)
    except ConfigError as error:
        yield error
        return
    facts = method_facts(method, method_source(method))
    widths = [(str(model["name"]), width) for width in input_widths(model)]
    name, propagation = config["allocation"]["name"], sparsity.get("propagation", "pruned")
    supply = supplies(model) if sparsity["pattern"] == Units.name else ()
    run = Run(facts, sparsity["ratio"], name, propagation, widths, n_blocks(model), neurons(model), supply)
    yield from pattern.check(run)
    yield from check_windows(config, method_source(method))
