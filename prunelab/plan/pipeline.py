"""A trial's config to its stages, calibrate to evaluate and speed. What is equal gets an equal key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from prunelab.config.check import method_source
from prunelab.config.code import source_digest, with_source
from prunelab.config.contract import WHOLE
from prunelab.config.data import GENERATED, SAME, parts_of, recipe_of
from prunelab.config.domain import ROLE as DOMAIN
from prunelab.config.domain import least_domains, other_domains
from prunelab.config.files import content_digest
from prunelab.config.fingerprint import fingerprint
from prunelab.config.outside import reads
from prunelab.config.repair import is_whole
from prunelab.config.schema import Calibration, Model, Trial
from prunelab.config.trial import plain
from prunelab.pattern.base import BETWEEN, UPDATE
from prunelab.pattern.judged import JUDGED, judged_with
from prunelab.pattern.table import pattern_of, times_speed
from prunelab.plan.schedule import schedule
from prunelab.plan.stage import Stage

# Two names for the same weights or text are the same work; paths are replaced by content digests.
_NOT_CORPUS = ("name", "path", "n_samples", "seq_len", "sampler")  # names, places, and what the role decides


def trial_stages(config: Trial, corpora: Mapping[str, Calibration]) -> dict[str, Stage]:
    """Return a trial's stages by role, in an order in which they could run.

    Roles: ``calibrate`` (tokens the mask is chosen on), ``domain/<name>`` (of other text, for a method that compares
    them), ``test/<corpus>``, ``held_out/<corpus>``, ``dense``, ``prune``
    (unless masks are chosen between repairs), ``reconstruct`` (unless there is none), ``evaluate``, ``speed`` (where units
    go, or if asked for); ``statistics``
    where single weights are pruned from the dense stream; where a repair fits to other tokens than the mask's,
    ``reconstruction`` and its parts ``reconstruction/<name>``; and each of the trial's ``stages`` from outside the
    package, by its name. ``corpora`` holds full specs by name.
    """
    evaluation, stages = config.evaluation, dict[str, Stage]()
    stages["calibrate"] = _tokens(config, config.calibration, "mask")
    for name in other_domains(config.domains, config.calibration.name, least_domains(config.method.fields)):
        stages[f"{DOMAIN}/{name}"] = _tokens(config, corpora[name], "mask")
    compared = {role: stage.key for role, stage in stages.items() if role.startswith(f"{DOMAIN}/")}
    for name in evaluation.corpora:
        stages[f"test/{name}"] = _tokens(config, corpora[name], "test")
    for name in evaluation.held_out:
        stages[f"held_out/{name}"] = _tokens(config, corpora[name], "held_out")
    tests = {role: stage.key for role, stage in stages.items() if role.startswith("test/")}
    errors = {role: stage.key for role, stage in stages.items() if role.startswith("held_out/")}
    model = model_identity(config.model)
    asked = _tasks(config) | _own_metrics(config)
    stages["dense"] = Stage(
        "dense", {"model": model} | asked, tests, _runtime(config), str(config.model.name)
    )
    stages |= _statistics(config, stages["calibrate"])
    last, pruning = "prune", _prune(config, stages)
    if config.reconstruction.fields.get("masks") != BETWEEN:
        stages[last] = pruning
    if config.reconstruction.name != "none":
        last = "reconstruct"
        stages |= _reconstruction_tokens(config, corpora, stages["calibrate"])
        stages[last] = _reconstruct(config, stages, pruning)
        if "reconstruction" in stages:  # over-fitting is measured against what the repair was fitted to
            errors["reconstruction"] = stages["reconstruction"].key
    stages["evaluate"] = Stage(
        "evaluate",
        {"model": model, "error_samples": evaluation.error_samples} | asked,
        {"dense": stages["dense"].key, last: stages[last].key, "calibrate": stages["calibrate"].key}
        | compared  # no window of theirs may judge
        | tests
        | errors,
        _runtime(config),
        stages[last].label,
    )
    return stages | _speed(config, last, stages) | _outside(config, last, stages)


def _speed(config: Trial, last: str, stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stage that times the compacted model; one of its own, so that no other number has a clock in its key."""
    evaluation = config.evaluation
    if not times_speed(evaluation.speed, pattern_of(plain(config.sparsity))):
        return {}
    identity = {
        "model": model_identity(config.model), "batch": evaluation.speed_batch, "prompt": evaluation.speed_prompt,
        "new_tokens": evaluation.speed_tokens, "rounds": evaluation.speed_rounds,
    }  # fmt: skip
    inputs = {last: stages[last].key}
    return {"speed": Stage("speed", identity, inputs, _runtime(config), stages[last].label)}


def _outside(config: Trial, last: str, stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages of classes from outside the package: they read the trial's weights and the tokens they name."""
    texts = {
        role if "/" in role else stage.identity["role"]: stage
        for role, stage in stages.items()
        if stage.kind == "calibrate"
    }
    made = {}
    for name, option in config.stages.items():
        wanted = reads(name, option.fields)
        identity = {"model": model_identity(config.model), "stage": with_source(option.fields)}
        inputs = {role: text.key for role, text in texts.items() if role.partition("/")[0] in wanted}
        runtime = _runtime(config) | {"stage": identity["stage"]}
        made[name] = Stage(name, identity, {last: stages[last].key} | inputs, runtime, stages[last].label)
    return made


def tracking_stage(config: Trial, trial: str, stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stage that tells a trial's tracker all of it; nothing without a tracker.

    It comes after all of the trial's ``stages``. What it leaves is the note of the trial's run in the study's folder;
    nothing of it is in the store, and no other key depends on it.
    """
    if config.tracking.name == "none":
        return {}
    inputs = {role: stage.key for role, stage in stages.items()}
    runtime = {"tracking": plain(config.tracking)}
    return {"track": Stage("track", {"trial": trial}, inputs, runtime, stages["evaluate"].label)}


def _tasks(config: Trial) -> dict[str, Any]:
    # max_len cuts the context of tasks; windows of tokens are as long as asked, or refused
    evaluation = config.evaluation
    if not evaluation.tasks:
        return {}
    return {
        "tasks": sorted(evaluation.tasks), "task_limit": evaluation.task_limit, "max_len": config.model.max_len,
    }  # fmt: skip


def _own_metrics(config: Trial) -> dict[str, Any]:
    """Return the metrics from outside the package, with the digests of their sources; nothing without one."""
    own = {name: with_source(option.fields) for name, option in sorted(config.evaluation.metrics.items())}
    return {"metrics": own} if own else {}


def model_identity(model: Model) -> dict[str, Any]:
    """Return what of a model spec decides its numbers; a local folder counts by its contents."""
    identity: dict[str, Any] = {
        "source": model.source, "id": model.id, "revision": model.revision, "digest": model.digest, "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
    }  # fmt: skip
    if model.source == "local":
        identity |= {"id": None, "digest": content_digest(model.id)}
    if model.family is not None:
        identity["family"] = content_digest(model.family)
    return identity


def _corpus_identity(corpus: Calibration) -> dict[str, Any]:
    identity = {key: value for key, value in plain(corpus).items() if key not in _NOT_CORPUS}
    if corpus.source in ("text", "tokens"):
        assert corpus.path is not None  # the check has read the file
        identity["digest"] = content_digest(corpus.path)
    return identity


def _tokens(config: Trial, corpus: Calibration, role: str, n_samples: int | None = None) -> Stage:
    # Only what masks and repairs see is drawn at random by the trial's seed; test and held-out text is the
    # same for every trial, from the start of its split.
    evaluation = config.evaluation
    count, length, seed = {
        "mask": (config.calibration.n_samples, config.calibration.seq_len, config.seed),
        "reconstruction": (n_samples, config.calibration.seq_len, config.seed),
        "held_out": (evaluation.error_samples, evaluation.seq_len, 0),
        "test": (evaluation.max_samples, evaluation.seq_len, 0),
    }[role]
    drawn = role in ("mask", "reconstruction")
    identity = {
        "tokenizer": _tokenizer(config), "corpus": _corpus_identity(corpus), "role": role,
        "sampler": corpus.sampler if drawn else "sequential",
        "n_samples": count, "seq_len": length, "seed": seed,
    }  # fmt: skip
    label = f"{corpus.name}-{role}-{count}x{length}" + (f"-s{seed}" if drawn else "")
    return Stage("calibrate", identity, {}, {"model": plain(config.model), "corpus": plain(corpus)}, label)


def _tokenizer(config: Trial) -> dict[str, Any]:
    return {key: value for key, value in model_identity(config.model).items() if key != "dtype"}


def _reconstruction_tokens(
    config: Trial, corpora: Mapping[str, Calibration], mask: Stage
) -> dict[str, Stage]:
    """Return ``reconstruction`` and, for a mixture, the stages of its parts; nothing if a repair takes the mask's tokens."""
    counts = parts_of(config.reconstruction_data.parts, config.calibration.n_samples)
    if counts == {SAME: config.calibration.n_samples}:
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
        "seq_len": config.calibration.seq_len,
    }  # fmt: skip
    label = "+".join(f"{name}-{count}" for name, count in counts.items())
    inputs = {name: stage.key for name, stage in parts.items()}
    mix = Stage("calibrate", identity, inputs, {"model": plain(config.model)}, label)
    own = {f"reconstruction/{name}": stage for name, stage in parts.items() if name != SAME}
    return own | {"reconstruction": mix}


def _generated(config: Trial, n_samples: int) -> Stage:
    # The weights that write are the dense ones, in the dtype of the trial.
    model, window = config.model, config.calibration.seq_len
    identity = {
        "model": model_identity(model), "recipe": recipe_of(config.reconstruction_data, window, model.max_len),
        "role": "reconstruction", "n_samples": n_samples, "seq_len": window, "seed": config.seed,
    }  # fmt: skip
    label = f"self_generated-{model.name}-{n_samples}x{window}-s{config.seed}"
    return Stage("calibrate", identity, {}, _runtime(config), label)


def _needs(config: Trial) -> set[str]:
    """Return what a method and its allocation look at in the calibration data; nothing: same work for any source."""
    needs = {
        *method_source(config.method.fields).literals["needs"],
        *pattern_of(plain(config.sparsity)).needs,
    }
    return needs | ({"input_norm"} if config.allocation.target is not None else set())


def _judged(config: Trial) -> bool:
    """Whether a method asks the whole model before it chooses."""
    fields = config.method.fields
    return bool(judged_with(fields, method_source(fields).literals.get(JUDGED, ())))


def _sources(needs: Collection[str]) -> dict[str, Any]:
    """Return the digests of the code of statistics from outside the package; nothing without one."""
    digests = {need: source_digest(need) for need in sorted(needs) if "." in need}
    return {"statistic_sources": digests} if digests else {}


def _statistics(config: Trial, calibrate: Stage) -> dict[str, Stage]:
    """Return the stage that looks at the dense model for all ratios and methods with the same needs, if one can."""
    sparsity, needs = config.sparsity, sorted(_needs(config))
    if not pattern_of(plain(sparsity)).propagates or sparsity.propagation != "dense" or not needs:
        return {}
    if len(_targets(config)) > 1:  # every shot looks at the model as the shots before have left it
        return {}
    if UPDATE in method_source(config.method.fields).names:  # the input of its biases counts, for nobody else
        return {}
    if least_domains(config.method.fields):  # it looks at every text by halves, which nobody else does
        return {}
    if _judged(config):  # it needs the tokens themselves, and keeps some of them from its statistics
        return {}
    identity = (
        {"model": model_identity(config.model), "statistics": needs} | _stored(config) | _sources(needs)
    )
    label = f"{'+'.join(needs)}-{config.model.name}-{calibrate.label}"
    stage = Stage("statistics", identity, {"calibrate": calibrate.key}, _runtime(config), label)
    return {"statistics": stage}


def _prune(config: Trial, stages: Mapping[str, Stage]) -> Stage:
    method, sparsity, allocation = config.method, config.sparsity, config.allocation
    pattern = pattern_of(plain(sparsity))
    identity: dict[str, Any] = {
        "model": model_identity(config.model),
        "method": with_source(method.fields),
        **pattern.identity(),
        "allocation": allocation.name if allocation.target is None else with_source(allocation.fields),
        "seed": config.seed,
    }
    if pattern.propagates:
        identity["propagation"] = sparsity.propagation
        identity |= _stored(config) if _needs(config) else {}
    identity |= _sources(_needs(config))
    correction = _correction(config)
    identity |= correction  # nothing where there is none
    source = "statistics" if "statistics" in stages else "calibrate"
    inputs = {source: stages[source].key} if _needs(config) or _judged(config) or correction else {}
    if method_source(method.fields).literals.get("tells_tokens") and inputs:
        inputs["calibrate"] = stages["calibrate"].key  # which text its samples are
    inputs |= {role: stage.key for role, stage in stages.items() if role.startswith(f"{DOMAIN}/")}
    targets = _targets(config)
    prefixes = [targets[:n] for n in range(len(targets) - 1, 0, -1)]
    place = config.calibration.name if inputs else config.model.name
    tag = f"-{pattern.tag}" if pattern.tag else ""
    return Stage(
        "prune",
        identity | {"schedule": list(targets)},
        inputs,
        _runtime(config)
        | {"method": identity["method"], "allocation": with_source(allocation.fields)}
        | correction,
        f"{method.name}-{sparsity.ratio:g}{tag}-{place}-s{config.seed}",
        tuple(fingerprint("prune", identity | {"schedule": list(prefix)}, inputs) for prefix in prefixes),
    )


def _correction(config: Trial) -> dict[str, Any]:
    """Return what corrects the model between shots, under its name. It comes before the second shot and those after, never
    after the last, so that what smaller ratios leave is what larger ones go through, as without it."""
    between = config.between_shots
    if between is None or between.target is None:
        return {}
    return {"between_shots": with_source(between.fields)}


def _targets(config: Trial) -> tuple[float, ...]:
    """Return the removed fraction after each shot."""
    assert config.sparsity.ratio is not None  # the check puts what n:m removes in its place
    return tuple(schedule(config.sparsity.ratio, config.method.fields["step"]))


def _reconstruct(config: Trial, stages: Mapping[str, Stage], pruning: Stage) -> Stage:
    """Return the repair of what ``pruning`` makes; where that is no stage of the trial, it is done in this one."""
    reconstruction = with_source(config.reconstruction.fields)
    identity = {
        "model": model_identity(config.model),
        "reconstruction": reconstruction,
        "seed": config.seed,
    }
    # of a whole model no states wait between blocks
    identity |= {"scope": WHOLE} if is_whole(config.reconstruction.fields) else _stored(config)
    tokens = "reconstruction" if "reconstruction" in stages else "calibrate"
    inputs, runtime = {tokens: stages[tokens].key}, _runtime(config) | {"reconstruction": reconstruction}
    if "prune" in stages:
        inputs["prune"] = pruning.key
    else:
        inputs |= pruning.inputs
        identity["prune"] = dict(pruning.identity)
        runtime |= {key: pruning.runtime[key] for key in ("method", "allocation")}
    return Stage("reconstruct", identity, inputs, runtime, f"{reconstruction['name']}-{pruning.label}")


def _runtime(config: Trial) -> dict[str, Any]:
    kept = {key: value for key, value in plain(config.runtime).items() if key not in ("workers", "threads")}
    return {"model": plain(config.model), **kept}


def _stored(config: Trial) -> dict[str, Any]:
    """What the walks of single weights store hidden states in, where it is not the model's own dtype."""
    dtype = config.runtime.activation_dtype
    return {} if dtype in (None, config.model.dtype) else {"activation_dtype": dtype}
