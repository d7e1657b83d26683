"""Every mistake of a composed trial, found without torch and before anything is queued."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prunelab.config.compose import Composer, Config, missing_keys
from prunelab.config.data import SAME, check_parts, corpora_of
from prunelab.config.field import ClassSource, read_class
from prunelab.config.files import check_model_folder, check_text_file
from prunelab.config.tasks import check_tasks
from prunelab.errors import ConfigError, PrunelabError, nearest

_SCHEMA = "prunelab.config.schema"
STRUCTURED = "rows_columns"
GROUPS = (
    "model", "calibration", "sparsity", "allocation", "reconstruction", "reconstruction_data", "evaluation",
    "tracking", "runtime", "paths",
)  # fmt: skip
_OPEN = ("allocation", "reconstruction")  # options may bring a class of their own, as methods do


def check_trial(
    config: Config, composer: Composer, *, whole: bool = True
) -> tuple[Config, dict[str, Config], list[ConfigError]]:
    """Check one trial; return it with values in their types, the specs of its evaluation corpora, its mistakes.

    Not ``whole``: an override could not be composed and a default stands in its place, so that nothing is said of
    what fits together.
    """
    errors: list[ConfigError] = []
    config = _checked("", config, read_class(f"{_SCHEMA}.Trial"), errors)
    for group in GROUPS:
        if isinstance(config.get(group), Mapping):
            config[group] = _checked(group, config[group], _class_of(group, config[group], errors), errors)
    if isinstance(config.get("method"), Mapping):
        config["method"] = _check_method(config, errors)
    if isinstance(config.get("allocation"), Mapping) and config["allocation"].get("name") == "by_pattern":
        structured = config["sparsity"].get("pattern") == STRUCTURED
        config["allocation"] = {"name": "global" if structured else "uniform"}
    if isinstance(config.get("reconstruction"), Mapping) and config["reconstruction"].get("name") == "none":
        config["reconstruction_data"] = {
            "name": SAME
        }  # nothing is fitted: trials that differ only here are one
    corpora = _corpora(config, composer, errors)
    wrong = {error.key.partition(".")[0] for error in errors}
    if whole and not wrong:
        errors += _across_groups(config)
    if not wrong & {"model", "calibration", "evaluation"}:
        errors += _about_files(config, corpora)
    return config, corpora, errors


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
    checked = _checked("method", method, source, errors)
    for attribute in ("needs", "supports"):
        if attribute not in source.literals:
            errors.append(
                ConfigError(
                    f"method.{attribute}",
                    "(nothing)",
                    "a literal tuple of strings in the class",
                    f"See {method['_target_']}.",
                )
            )
    return checked


def _corpora(config: Config, composer: Composer, errors: list[ConfigError]) -> dict[str, Config]:
    evaluation, found = config.get("evaluation", {}), {}
    for key in ("corpora", "held_out"):
        for name in evaluation.get(key) or []:
            if name in found:
                continue
            known = composer.options("calibration")
            if name not in known:
                errors.append(
                    ConfigError(
                        f"evaluation.{key}",
                        name,
                        f"names of calibration options: {', '.join(known)}",
                        nearest(str(name), known),
                    )
                )
                continue
            found[name] = _corpus(name, composer, errors)
    if isinstance(evaluation.get("corpora"), list) and not evaluation["corpora"]:
        errors.append(ConfigError("evaluation.corpora", [], "at least one corpus"))
    known = composer.options("calibration")
    if evaluation.get("tasks"):
        embedded = [name for name in known if composer.option("calibration", name)["source"] == "embedded"]
        errors += check_tasks(evaluation["tasks"], embedded)
    for name in corpora_of(config.get("reconstruction_data")):
        if name in known and name not in found:
            found[name] = _corpus(name, composer, errors)
    errors += check_parts(config, known)
    return found


def _corpus(name: str, composer: Composer, errors: list[ConfigError]) -> Config:
    spec = composer.option("calibration", name)
    return _checked(f"calibration/{name}", spec, read_class(f"{_SCHEMA}.Calibration"), errors)


def _across_groups(config: Config) -> Iterator[ConfigError]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", config["study"]):
        yield ConfigError("study", config["study"], "letters, digits, '.', '_', '-' (it names a folder)")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config["runtime"]["device"]):
        yield ConfigError("runtime.device", config["runtime"]["device"], "auto, cpu, cuda, cuda:N or mps")
    yield from _about_sparsity(config)
    model = config["model"]
    if model["source"] == "hub" and not re.fullmatch(r"[0-9a-f]{40}", model["revision"] or ""):
        hint = "Branches and tags move, and with them the numbers."
        yield ConfigError("model.revision", model["revision"], "a commit of the hub, 40 hex digits", hint)
    longest = model["max_len"]
    for key in ("calibration", "evaluation"):
        length = config[key]["seq_len"]
        if longest is not None and length > longest:
            yield ConfigError(
                f"{key}.seq_len", length, f"at most {longest}, the context of {config['model']['name']}"
            )


def _about_files(config: Config, corpora: Mapping[str, Config]) -> Iterator[ConfigError]:
    try:
        if config["model"]["source"] == "local":
            check_model_folder("model.id", config["model"]["id"])
        for key, spec in {
            "calibration": config["calibration"],
            **{f"calibration/{n}": s for n, s in corpora.items()},
        }.items():
            if spec["source"] in ("text", "tokens"):
                check_text_file(f"{key}.path", spec["path"], spec["source"])
    except ConfigError as error:
        yield error
    except PrunelabError as error:
        yield ConfigError("paths", "?", "readable files", str(error))


def _about_sparsity(config: Config) -> Iterator[ConfigError]:
    sparsity, allocation, method = config["sparsity"], config["allocation"]["name"], config["method"]
    n, m, within = (sparsity.get(key) for key in ("n", "m", "within"))
    supported = method_source(method).literals["supports"]
    if sparsity["pattern"] not in supported:
        can = f"what method={method['name']} can do: {', '.join(supported)}"
        yield ConfigError("sparsity.pattern", sparsity["pattern"], can)
    if sparsity["pattern"] == STRUCTURED:
        if allocation not in ("global", "uniform"):
            yield ConfigError(
                "allocation", allocation, f"global or uniform with sparsity.pattern={STRUCTURED}"
            )
        for key, value in (("n", n), ("m", m), ("within", within)):
            if value is not None:
                yield ConfigError(f"sparsity.{key}", value, f"null with sparsity.pattern={STRUCTURED}")
        return
    if method["step"] is not None:
        hint = "Single weights are pruned in one shot: method.step=null."
        yield ConfigError(
            "method.step", method["step"], f"null with sparsity.pattern={sparsity['pattern']}", hint
        )
    looks = method_source(method).literals.get("needs")
    if allocation == "global" and looks and sparsity["propagation"] != "dense":
        yield ConfigError(
            "sparsity.propagation", sparsity["propagation"], "dense with allocation=global",
            "All layers are compared before any is pruned.",
        )  # fmt: skip
    if sparsity["pattern"] == "unstructured":
        if (n, m) != (None, None):
            yield ConfigError("sparsity.n, sparsity.m", (n, m), "null with sparsity.pattern=unstructured")
    elif n is None or m is None or not n < m:
        yield ConfigError("sparsity.n, sparsity.m", (n, m), "n < m: n of every m consecutive inputs are kept")
    else:
        if abs(sparsity["ratio"] - (1 - n / m)) > 1e-9:
            yield ConfigError("sparsity.ratio", sparsity["ratio"], f"{1 - n / m:g}, what {n}:{m} removes")
        if allocation != "uniform":
            yield ConfigError("allocation", allocation, "uniform with n:m, which fixes every layer's ratio")
        if within is not None:
            yield ConfigError("sparsity.within", within, "null with n:m, where groups of m compete")
