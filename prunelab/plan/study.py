"""A study's plan: its trials and the stages they share, and the file that keeps it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunelab.config import schema
from prunelab.config.fingerprint import fingerprint
from prunelab.config.trial import plain, typed
from prunelab.config.version import SCHEMA, other_schema
from prunelab.errors import StoreError
from prunelab.files import make_folder, refused, replace_file
from prunelab.plan.kind import KINDS
from prunelab.plan.name import trial_names
from prunelab.plan.pipeline import tracking_stage, trial_stages
from prunelab.plan.stage import Stage


@dataclass(frozen=True)
class Trial:
    """One fully resolved config and the keys of its stages by role."""

    number: int
    name: str
    key: str
    overrides: tuple[str, ...]
    config: schema.Trial
    stages: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """All trials of a study, and every stage once, by key."""

    study: str
    store: Path
    folder: Path
    trials: tuple[Trial, ...]
    stages: Mapping[str, Stage]
    argv: tuple[str, ...] = ()
    created: str = ""

    def users(self, key: str) -> list[Trial]:
        """Return the trials that need the stage ``key``."""
        return [trial for trial in self.trials if key in trial.stages.values()]


def build_plan(
    configs: Sequence[schema.Trial],
    corpora: Sequence[Mapping[str, schema.Calibration]],
    overrides: Sequence[Sequence[str]],
    *,
    argv: Sequence[str],
    created: str,
) -> Plan:
    """Join checked configs into one plan; trials that differ in nothing that counts share all their stages."""
    stages: dict[str, Stage] = {}
    trials = []
    for config, specs, given in zip(configs, corpora, overrides, strict=True):
        own = trial_stages(config, specs)
        stages |= {stage.key: stage for stage in own.values() if stage.key not in stages}
        roles = {role: stage.key for role, stage in own.items()}
        key = fingerprint("trial", {"study": config.study}, roles)
        if key not in {trial.key for trial in trials}:  # two ways to ask for the same thing are one trial
            told = tracking_stage(config, key, own)
            stages |= {stage.key: stage for stage in told.values()}
            roles |= {role: stage.key for role, stage in told.items()}
            trials.append(Trial(len(trials), "", key, tuple(given), config, roles))
    first = configs[0]
    return Plan(
        first.study,
        Path(first.paths.store).expanduser().absolute(),
        Path(first.paths.study).expanduser().absolute(),
        _named(trials),
        stages,
        tuple(argv),
        created,
    )


def _named(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    names = trial_names([plain(trial.config) for trial in trials], [trial.key for trial in trials])
    return tuple(replace(trial, name=name) for trial, name in zip(trials, names, strict=True))


def save_plan(plan: Plan) -> Path:
    """Write ``plan.json`` into the study's folder, and a copy under ``plans/`` that no later command changes.

    The store is made first, so that a plan without one has lost it (`require_store`). Returns the copy's path: what
    queued jobs read, whatever is planned under the same name meanwhile. Raises StoreError where nothing can be written.
    """
    try:
        make_folder(plan.store)
    except OSError as error:
        raise refused(plan.store, error) from error
    kept = {
        "schema": SCHEMA, "study": plan.study, "created": plan.created, "argv": list(plan.argv), "store": _kept_store(plan),
        "trials": [
            {"number": t.number, "name": t.name, "key": t.key, "overrides": list(t.overrides), "config": plain(t.config),
             "stages": dict(t.stages)}
            for t in plan.trials
        ],
        "stages": {key: stage.to_plain() for key, stage in plan.stages.items()},
    }  # fmt: skip
    text = json.dumps(kept, indent=1).encode("utf-8")
    copy = plan.folder / "plans" / f"{hashlib.sha256(text).hexdigest()[:16]}.json"
    for path in (copy, plan.folder / "plan.json"):
        replace_file(path, text)
    return copy


def _kept_store(plan: Plan) -> str:
    """Return the store's path as a plan keeps it: from the study's folder where both lie under one root, which may move."""
    root = plan.folder.parent.parent
    if root != root.parent and plan.store.is_relative_to(root):
        return os.path.relpath(plan.store, plan.folder)
    return str(plan.store)


def store_place(folder: Path, kept: str, store: Path | None = None) -> Path:
    """Return the store of the study in ``folder``: ``store`` if somebody says so, else where its plan says (``kept``),
    else the one beside the study, if there is one.

    It need not exist: `require_store` says so.
    """
    if store is not None:
        return store.expanduser().absolute()
    place = Path(os.path.normpath(folder.absolute() / kept))
    beside = folder.absolute().parent.parent / "store"
    return beside if not place.is_dir() and beside.is_dir() else place


def require_store(folder: Path, store: Path, *, asked: bool = False) -> None:
    """Raise StoreError if the study in ``folder`` has lost its store, or if the one that was ``asked`` for is none.

    A study's command makes the store before it saves the plan: a study that waits for its first job has an empty one,
    and a saved plan whose store is no folder has lost it (moved, not mounted here). It must not pass for a study of
    which nothing is finished, which would be reported as such, or run again into a store made anew.
    """
    beside = folder.absolute().parent.parent / "store"
    where = (
        f"put the store there or beside the study, as {beside}, and ask again; `prunelab status`, `report`, `export` and `sync` "
        "take its place by --store FOLDER."
    )
    if not store.is_dir():
        raise StoreError(f"The store of {folder} is not there: {store}. Nothing was written; {where}")
    if asked and not any((store / name).is_dir() for name in KINDS):
        raise StoreError(f"{store} is no store: it has no results of any kind. Nothing was written; {where}")


def is_saved(plan: Plan) -> bool:
    """Say whether the study's folder holds a plan of the same trials."""
    try:
        saved = load_plan(plan.folder)
    except StoreError:
        return False
    return [(t.name, t.key, t.stages) for t in saved.trials] == [
        (t.name, t.key, t.stages) for t in plan.trials
    ]


def left_out(plan: Plan) -> int:
    """Return how many trials of the plan that this one replaces, if any, are not in it."""
    try:
        before = load_plan(plan.folder)
    except StoreError:
        return 0
    keys = {trial.key for trial in plan.trials}
    return sum(trial.key not in keys for trial in before.trials)


def plan_place(path: Path) -> tuple[Path, Path]:
    """Return a study's folder and the file of its plan, given either: ``plan.json``, or an older one in ``plans/``."""
    if path.suffix != ".json":
        return path, path / "plan.json"
    return (path.parent.parent if path.parent.name == "plans" else path.parent), path


def load_plan(path: Path, store: Path | None = None) -> Plan:
    """Read the plan of a study's folder, or a plan's file; ``store``: where its store is, if not where it says.

    Raises StoreError if there is none or it was changed; the store need not be there.
    """
    folder, path = plan_place(path)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(
            f"{folder} is no study: plan.json is missing. Studies are made by `python -m prunelab ... -m`."
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); run the study's command again, it rewrites the plan."
        ) from error
    if kept.get("schema") != SCHEMA:
        hint = (
            "Run the study's command again: it plans anew, and what the old version found stays in the store."
        )
        raise StoreError(f"{other_schema(path, kept.get('schema'))} {hint}")
    try:
        stages = {key: Stage.from_plain(key, value) for key, value in kept["stages"].items()}
        trials = tuple(
            Trial(t["number"], t["name"], t["key"], tuple(t["overrides"]), typed(t["config"]), t["stages"])
            for t in kept["trials"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} was changed: {error!r}. Run the study's command again, it rewrites the plan."
        ) from error
    return Plan(
        kept["study"],
        store_place(folder, kept["store"], store),
        folder,
        trials,
        stages,
        tuple(kept["argv"]),
        kept["created"],
    )
