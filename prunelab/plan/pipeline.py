"""A trial's config to its stages: calibrate, dense, statistics, prune, reconstruct, evaluate. What is equal gets an equal key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from prunelab.config.check import method_source
from prunelab.config.code import source_digest, with_source
from prunelab.config.data import GENERATED, SAME, parts_of, recipe_of
from prunelab.config.files import content_digest
from prunelab.config.fingerprint import fingerprint
from prunelab.config.outside import reads
from prunelab.pattern import BETWEEN, pattern_of
from prunelab.plan.schedule import schedule
from prunelab.plan.stage import Stage

Config = Mapping[str, Any]

# Two names for the same weights or text are the same work; paths are replaced by content digests.
_MODEL = ("source", "id", "revision", "digest", "dtype", "trust_remote_code")
_NOT_CORPUS = ("name", "path", "n_samples", "seq_len", "sampler")  # names, places, and what the role decides


def trial_stages(config: Config, corpora: Mapping[str, Config]) -> dict[str, Stage]:
    """Return a trial's stages by role, in an order in which they could run.

    Roles: ``calibrate`` (tokens the mask is chosen on), ``test/<corpus>``, ``held_out/<corpus>``, ``dense``, ``prune``
    (unless masks are chosen between repairs), ``reconstruct`` (unless there is none), ``evaluate``; ``statistics``
    where single weights are pruned from the dense stream; where a repair fits to other tokens than the mask's,
    ``reconstruction`` and its parts ``reconstruction/<name>``; and each of the trial's ``stages`` from outside the
    package, by its name. ``corpora`` holds full specs by name.
    """
    evaluation, stages = config["evaluation"], {}
    stages["calibrate"] = _tokens(config, config["calibration"], "mask")
    for name in evaluation["corpora"]:
        stages[f"test/{name}"] = _tokens(config, corpora[name], "test")
    for name in evaluation["held_out"]:
        stages[f"held_out/{name}"] = _tokens(config, corpora[name], "held_out")
    tests = {role: stage.key for role, stage in stages.items() if role.startswith("test/")}
    errors = {role: stage.key for role, stage in stages.items() if role.startswith("held_out/")}
    model = model_identity(config["model"])
    asked = _tasks(config) | _own_metrics(config)
    stages["dense"] = Stage(
        "dense", {"model": model} | asked, tests, _runtime(config), config["model"]["name"]
    )
    stages |= _statistics(config, stages["calibrate"])
    last, pruning = "prune", _prune(config, stages)
    if config["reconstruction"].get("masks") != BETWEEN:
        stages[last] = pruning
    if config["reconstruction"]["name"] != "none":
        last = "reconstruct"
        stages |= _reconstruction_tokens(config, corpora, stages["calibrate"])
        stages[last] = _reconstruct(config, stages, pruning)
        if "reconstruction" in stages:  # over-fitting is measured against what the repair was fitted to
            errors["reconstruction"] = stages["reconstruction"].key
    stages["evaluate"] = Stage(
        "evaluate",
        {"model": model, "error_samples": evaluation["error_samples"]} | asked,
        {"dense": stages["dense"].key, last: stages[last].key, "calibrate": stages["calibrate"].key}
        | tests
        | errors,
        _runtime(config),
        stages[last].label,
    )
    return stages | _outside(config, last, stages)


def _outside(config: Config, last: str, stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages of classes from outside the package: they read the trial's weights and the tokens they name."""
    texts = {
        role if "/" in role else stage.identity["role"]: stage
        for role, stage in stages.items()
        if stage.kind == "calibrate"
    }
    made = {}
    for name, option in config["stages"].items():
        wanted = reads(name, option)
        identity = {"model": model_identity(config["model"]), "stage": with_source(option)}
        inputs = {role: text.key for role, text in texts.items() if role.partition("/")[0] in wanted}
        runtime = _runtime(config) | {"stage": identity["stage"]}
        made[name] = Stage(name, identity, {last: stages[last].key} | inputs, runtime, stages[last].label)
    return made


def tracking_stage(config: Config, trial: str, stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stage that tells a trial's tracker all of it; nothing without a tracker.

    It comes after all of the trial's ``stages``. What it leaves is the note of the trial's run in the study's folder;
    nothing of it is in the store, and no other key depends on it.
    """
    if config["tracking"]["name"] == "none":
        return {}
    inputs = {role: stage.key for role, stage in stages.items()}
    runtime = {"tracking": dict(config["tracking"])}
    return {"track": Stage("track", {"trial": trial}, inputs, runtime, stages["evaluate"].label)}


def _tasks(config: Config) -> dict[str, Any]:
    # max_len cuts the context of tasks; windows of tokens are as long as asked, or refused
    evaluation = config["evaluation"]
    if not evaluation["tasks"]:
        return {}
    return {
        "tasks": sorted(evaluation["tasks"]), "task_limit": evaluation["task_limit"], "max_len": config["model"]["max_len"],
    }  # fmt: skip


def _own_metrics(config: Config) -> dict[str, Any]:
    """Return the metrics from outside the package, with the digests of their sources; nothing without one."""
    own = {name: with_source(option) for name, option in sorted(config["evaluation"]["metrics"].items())}
    return {"metrics": own} if own else {}


def model_identity(model: Config) -> dict[str, Any]:
    """Return what of a model spec decides its numbers; a local folder counts by its contents."""
    identity = {key: model[key] for key in _MODEL}
    if model["source"] == "local":
        identity |= {"id": None, "digest": content_digest(model["id"])}
    if model.get("family") is not None:
        identity["family"] = content_digest(model["family"])
    return identity


def _corpus_identity(corpus: Config) -> dict[str, Any]:
    identity = {key: value for key, value in corpus.items() if key not in _NOT_CORPUS}
    if corpus["source"] in ("text", "tokens"):
        identity["digest"] = content_digest(corpus["path"])
    return identity


def _tokens(config: Config, corpus: Config, role: str, n_samples: int | None = None) -> Stage:
    # Only what masks and repairs see is drawn at random by the trial's seed; test and held-out text is the
    # same for every trial, from the start of its split.
    evaluation = config["evaluation"]
    count, length, seed = {
        "mask": (config["calibration"]["n_samples"], config["calibration"]["seq_len"], config["seed"]),
        "reconstruction": (n_samples, config["calibration"]["seq_len"], config["seed"]),
        "held_out": (evaluation["error_samples"], evaluation["seq_len"], 0),
        "test": (evaluation["max_samples"], evaluation["seq_len"], 0),
    }[role]
    drawn = role in ("mask", "reconstruction")
    identity = {
        "tokenizer": _tokenizer(config), "corpus": _corpus_identity(corpus), "role": role,
        "sampler": corpus["sampler"] if drawn else "sequential",
        "n_samples": count, "seq_len": length, "seed": seed,
    }  # fmt: skip
    label = f"{corpus['name']}-{role}-{count}x{length}" + (f"-s{seed}" if drawn else "")
    return Stage("calibrate", identity, {}, {"model": dict(config["model"]), "corpus": dict(corpus)}, label)


def _tokenizer(config: Config) -> dict[str, Any]:
    return {key: value for key, value in model_identity(config["model"]).items() if key != "dtype"}


def _reconstruction_tokens(config: Config, corpora: Mapping[str, Config], mask: Stage) -> dict[str, Stage]:
    """Return ``reconstruction`` and, for a mixture, the stages of its parts; nothing if a repair takes the mask's tokens."""
    counts = parts_of(config)
    if counts == {SAME: config["calibration"]["n_samples"]}:
        return {}
    parts: dict[str, Stage] = {}
    for name, count in counts.items():
        if name == SAME:
            parts[name] = mask
        elif name == GENERATED:
            parts[name] = _generated(config, count)
        else:
            parts[name] = _tokens(config, corpora[name], "reconstruction", count)
    if len(parts) == 1 and SAME not in parts:
        return {"reconstruction": next(iter(parts.values()))}
    identity = {
        "tokenizer": _tokenizer(config), "parts": counts, "role": "reconstruction",
        "seq_len": config["calibration"]["seq_len"],
    }  # fmt: skip
    label = "+".join(f"{name}-{count}" for name, count in counts.items())
    inputs = {name: stage.key for name, stage in parts.items()}
    mix = Stage("calibrate", identity, inputs, {"model": dict(config["model"])}, label)
    own = {f"reconstruction/{name}": stage for name, stage in parts.items() if name != SAME}
    return own | {"reconstruction": mix}


def _generated(config: Config, n_samples: int) -> Stage:
    # The weights that write are the dense ones, in the dtype of the trial.
    identity = {
        "model": model_identity(config["model"]), "recipe": recipe_of(config), "role": "reconstruction",
        "n_samples": n_samples, "seq_len": config["calibration"]["seq_len"], "seed": config["seed"],
    }  # fmt: skip
    label = f"self_generated-{config['model']['name']}-{n_samples}x{identity['seq_len']}-s{config['seed']}"
    return Stage("calibrate", identity, {}, _runtime(config), label)


def _needs(config: Config) -> set[str]:
    """Return what a method and its allocation look at in the calibration data; nothing: same work for any source."""
    needs = set(method_source(config["method"]).literals["needs"])
    return needs | ({"input_norm"} if "_target_" in config["allocation"] else set())


def _sources(needs: Collection[str]) -> dict[str, Any]:
    """Return the digests of the code of statistics from outside the package; nothing without one."""
    digests = {need: source_digest(need) for need in sorted(needs) if "." in need}
    return {"statistic_sources": digests} if digests else {}


def _statistics(config: Config, calibrate: Stage) -> dict[str, Stage]:
    """Return the stage that looks at the dense model for all ratios and methods with the same needs, if one can."""
    sparsity, needs = config["sparsity"], sorted(_needs(config))
    if not pattern_of(sparsity).propagates or sparsity.get("propagation", "pruned") != "dense" or not needs:
        return {}
    identity = (
        {"model": model_identity(config["model"]), "statistics": needs} | _stored(config) | _sources(needs)
    )
    label = f"{'+'.join(needs)}-{config['model']['name']}-{calibrate.label}"
    stage = Stage("statistics", identity, {"calibrate": calibrate.key}, _runtime(config), label)
    return {"statistics": stage}


def _prune(config: Config, stages: Mapping[str, Stage]) -> Stage:
    method, sparsity, allocation = config["method"], config["sparsity"], config["allocation"]
    pattern = pattern_of(sparsity)
    identity: dict[str, Any] = {
        "model": model_identity(config["model"]),
        "method": with_source(method),
        **pattern.identity(),
        "allocation": with_source(allocation) if "_target_" in allocation else allocation["name"],
        "seed": config["seed"],
    }
    if pattern.propagates:
        identity["propagation"] = sparsity.get("propagation", "pruned")
        identity |= _stored(config) if _needs(config) else {}
    identity |= _sources(_needs(config))
    source = "statistics" if "statistics" in stages else "calibrate"
    inputs = {source: stages[source].key} if _needs(config) else {}
    targets = schedule(sparsity["ratio"], method["step"] if pattern.several_shots else None)
    prefixes = [targets[:n] for n in range(len(targets) - 1, 0, -1)]
    place = config["calibration"]["name"] if inputs else config["model"]["name"]
    tag = f"-{pattern.tag}" if pattern.tag else ""
    return Stage(
        "prune",
        identity | {"schedule": list(targets)},
        inputs,
        _runtime(config) | {"method": identity["method"], "allocation": with_source(allocation)},
        f"{method['name']}-{sparsity['ratio']:g}{tag}-{place}-s{config['seed']}",
        tuple(fingerprint("prune", identity | {"schedule": list(prefix)}, inputs) for prefix in prefixes),
    )


def _reconstruct(config: Config, stages: Mapping[str, Stage], pruning: Stage) -> Stage:
    """Return the repair of what ``pruning`` makes; where that is no stage of the trial, it is done in this one."""
    reconstruction = with_source(config["reconstruction"])
    identity = {
        "model": model_identity(config["model"]),
        "reconstruction": reconstruction,
        "seed": config["seed"],
    } | _stored(config)
    tokens = "reconstruction" if "reconstruction" in stages else "calibrate"
    inputs, runtime = {tokens: stages[tokens].key}, _runtime(config) | {"reconstruction": reconstruction}
    if "prune" in stages:
        inputs["prune"] = pruning.key
    else:
        inputs |= pruning.inputs
        identity["prune"] = dict(pruning.identity)
        runtime |= {key: pruning.runtime[key] for key in ("method", "allocation")}
    return Stage("reconstruct", identity, inputs, runtime, f"{reconstruction['name']}-{pruning.label}")


def _runtime(config: Config) -> dict[str, Any]:
    runtime = config["runtime"]
    kept = {key: value for key, value in runtime.items() if key not in ("workers", "threads")}
    return {"model": dict(config["model"]), **kept}


def _stored(config: Config) -> dict[str, Any]:
    """What the walks of single weights store hidden states in, where it is not the model's own dtype."""
    dtype = config["runtime"]["activation_dtype"]
    return {} if dtype in (None, config["model"]["dtype"]) else {"activation_dtype": dtype}
