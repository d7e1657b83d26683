"""``prunelab export STUDY TRIAL FOLDER``: a finished trial's model as a checkpoint with a card of where it comes from."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunelab.config import schema
from prunelab.config.domain import least_domains
from prunelab.config.trial import plain
from prunelab.errors import StoreError, nearest
from prunelab.files import replace_file
from prunelab.metric import ACC, ACC_NORM, CHANGE, ERROR, OF_WEIGHTS, PARAMETERS, PPL, RATIO, metric_of
from prunelab.model_files import DECILM_FORM, OWN, PADDED
from prunelab.plan.kind import DENSE, kind_of
from prunelab.plan.stage import Stage
from prunelab.plan.study import Plan, Trial
from prunelab.store.artefact import verified_record
from prunelab.store.layout import OUTPUTS, is_done, locate
from prunelab.store.record import Record

_STATE = "state.safetensors"
_SHOWN = (PPL, CHANGE, ACC, ACC_NORM, ERROR, RATIO, PARAMETERS)  # on the card; the rest in the JSON
CARD, FACTS = "README.md", "prunelab.json"


def export(
    plan: Plan, name: str, folder: Path, *, force: bool, compact: bool = False, form: str = OWN
) -> Path:
    """Write the model of the trial called ``name`` to ``folder``; return it.

    Removed weights stay as zeros, or with ``compact`` are really gone; ``form`` is then what the checkpoint looks like, one
    of ``FORMS`` of prunelab.model_files. The folder appears when it is whole. Raises
    StoreError for a trial that is unknown, unfinished or damaged, and for a folder that holds something, unless that is
    an earlier export and ``force`` says to replace it; ModelError where ``compact`` leaves layers that a checkpoint of
    ``form`` cannot say.
    """
    if form != OWN and not compact:
        raise StoreError(f"--form {form} is a shape of what is left: add --compact.")
    trial = _trial(plan, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise StoreError(
            f"{folder} is not empty; take another folder, or --force to replace an earlier export."
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FACTS).is_file():
        raise StoreError(
            f"{folder} holds no earlier export ({FACTS} is missing) and is not replaced; take another folder."
        )
    stages = {role: plan.stages[key] for role, key in trial.stages.items()}
    records = {
        role: _record(plan, stage, trial)
        for role, stage in stages.items()
        if kind_of(stage.kind).home == "store"
    }
    last = [role for role, stage in stages.items() if kind_of(stage.kind).weights][-1]
    state = _folder(plan, stages[last]) / OUTPUTS / _STATE
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        writer = importlib.import_module("prunelab.stages.export")
        written = writer.write(plain(trial.config.model), state, partial, compact=compact, form=form)
        shape = {"form": form} if compact else {}
        facts = _facts(plan, trial, records) | {"checkpoint": {"compact": compact, **shape, **written}}
        replace_file(partial / FACTS, json.dumps(facts, indent=1, sort_keys=True).encode("utf-8"))
        replace_file(partial / CARD, card(trial.config, facts).encode("utf-8"))
        if folder.exists():
            shutil.rmtree(folder)  # empty, or an earlier export
        partial.replace(folder)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error.strerror or error}. Free space, or another place?"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _trial(plan: Plan, name: str) -> Trial:
    known = {trial.name: trial for trial in plan.trials}
    if name not in known:
        names = ", ".join(list(known)[:8]) + (f", and {len(known) - 8} more" if len(known) > 8 else "")
        raise StoreError(
            f"{plan.study} has no trial {name!r}; it has {names}. {nearest(name, known)}".rstrip()
        )
    return known[name]


def _folder(plan: Plan, stage: Stage) -> Path:
    return locate(plan.store, stage.kind, stage.key, stage.folder)


def _record(plan: Plan, stage: Stage, trial: Trial) -> Record:
    folder = _folder(plan, stage)
    if not is_done(folder):
        raise StoreError(
            f"{trial.name} is not finished: {stage.kind} is missing. prunelab status {plan.folder} says why; "
            f"prunelab retry {plan.folder} goes on."
        )
    return verified_record(folder, stage.key)


def _facts(plan: Plan, trial: Trial, records: Mapping[str, Record]) -> dict[str, Any]:
    """Return all that is known of a trial, as JSON-ready data."""
    config = {
        key: value
        for key, value in plain(trial.config).items()
        if key not in ("paths", "tracking", "runtime")
    }
    metrics = {
        name: value
        for role, record in records.items()
        if kind_of(record.kind).of_trial or role == DENSE
        for name, value in ((f"{DENSE}/{n}" if role == DENSE else n, v) for n, v in record.metrics.items())
    }
    return {
        "study": plan.study, "trial": trial.name, "key": trial.key, "command": ["python", "-m", "prunelab", *plan.argv],
        "config": config, "metrics": metrics,
        "stages": {role: {"key": r.key, "identity": r.identity, "inputs": r.inputs} for role, r in records.items()},
        "provenance": {role: record.provenance for role, record in records.items()},
    }  # fmt: skip


def card(config: schema.Trial, facts: Mapping[str, Any]) -> str:
    """Return the model card: what was done to which model, on which text, and what came out."""
    model, sparsity, method, calibration = config.model, config.sparsity, config.method, config.calibration
    metrics = facts["metrics"]
    base = model.id if model.source == "hub" else model.name
    head = [
        "---",
        *([f"base_model: {base}"] if model.source == "hub" else []),
        "tags: [pruned, prunelab]",
        "---",
    ]
    versions = next(iter(facts["provenance"].values()), {}).get("versions", {})
    fields = ", ".join(f"{k}={v}" for k, v in method.fields.items() if k not in ("_target_", "name"))
    of_pattern = ", ".join(
        f"{key}={value}"
        for key, value in plain(sparsity).items()
        if key not in ("pattern", "ratio") and value is not None
    )
    others = ", ".join(config.domains) if least_domains(method.fields) else ""
    rows = {
        "base model": f"{base}, revision {model.revision or 'none'}, {model.dtype}",
        "method": f"{method.name} ({fields})",
        "sparsity": f"{sparsity.pattern}, asked {sparsity.ratio:.6g}, removed {metrics[OF_WEIGHTS]:.6g} of the weights",
        "of the pattern": of_pattern or "nothing to choose",
        "allocation": config.allocation.name,
        "calibration": f"{calibration.name}, {calibration.n_samples} x {calibration.seq_len} tokens, "
        f"seed {config.seed}" + (f"; compared with {others}" if others else ""),
        "repair": config.reconstruction.name,
        "perplexity": f"non-overlapping windows of {config.evaluation.seq_len} tokens of the test split, no special tokens",
        "checkpoint": f"{facts['checkpoint']['parameters']} parameters, {facts['checkpoint']['bytes']} bytes of weights",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
    shown = {k: v for k, v in sorted(metrics.items()) if metric_of(k.removeprefix(f"{DENSE}/")) in _SHOWN}
    lines = [
        f"# {base}, pruned by {method.name}",
        "",
        f"{_form(facts['checkpoint'])} Its licence is that of {base}.",
        f"`{FACTS}` holds every setting, key and number.",
        "",
        *_table("", "", rows),
        *_table("metric", "value", {name: _number(value) for name, value in shown.items()}),
        f"Made by `{' '.join(facts['command'])}`, trial `{facts['trial']}`, key `{facts['key']}`.",
        "",
    ]
    return "\n".join([*head, "", *lines])


def _form(checkpoint: Mapping[str, Any]) -> str:
    if checkpoint.get("form") == PADDED:
        return (
            "An ordinary checkpoint: removed units are gone, but for zeros that make all layers equally wide."
        )
    if checkpoint.get("form") == DECILM_FORM:
        return (
            "Its layers differ in width, as those of DeciLMForCausalLM do, by which name vLLM knows it. Of transformers: "
            "`AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`."
        )
    if not checkpoint["own_code"]:
        return (
            "A smaller checkpoint: removed units are gone."
            if checkpoint["compact"]
            else "An ordinary checkpoint: removed weights are zeros."
        )
    return (
        "Its layers differ from those that its architecture's config can say, in width, in biases or in single rows and columns: "
        "load it with `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`. Without that transformers refuses "
        "the widths, but drops biases with no more than a note."
    )


def _table(left: str, right: str, rows: Mapping[str, str]) -> list[str]:
    return [
        f"| {left} | {right} |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
    ]


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) or float(value).is_integer() else f"{float(value):.6g}"
