"""A study's folder and its store -> tidy rows: one per trial, beside them blocks, repairs, sites, costs, configs.

Reads JSON only and works while the study runs: a trial without its last record is a row with status
``failed`` or ``unfinished`` and a reason; the study's ``failures/<key>.json`` give ``reason`` and ``log``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prunelab.config.data import parts_of
from prunelab.errors import StoreError
from prunelab.metric import ACC, COST, HELD_OUT_ERROR, MEAN_ACC, PPL, Metric, digest_of, metric_of
from prunelab.plan.kind import kind_of, metric_prefix
from prunelab.plan.study import plan_place, require_store, store_place
from prunelab.report.derive import derived, derived_blocks
from prunelab.report.label import DATA, NO_REPAIR, REPAIR, label_trials
from prunelab.store.layout import index, is_done
from prunelab.store.record import read_record

DONE, FAILED, UNFINISHED = "done", "failed", "unfinished"

TABLES = {  # tables of the records, and the columns that they have even when they are empty
    "blocks": ("number", "block", "stream", "error"),
    "repair": ("number", "block", "error_before", "error"),
    "sites": ("number", "site", "block", "path", "removed", "total"),
}
UNITS = "units/"  # tables of what methods say of units begin so
# of the long table: whose number (``stage`` is a role of the trial, ``dense`` the unpruned model), which, how measured
LONG = ("number", "name", "seed", "stage", "metric", "of", "value", "unit", "better", "protocol")
_NUMBERS = ("block", "error", "error_before", "mse", "mse_before")


@dataclass(frozen=True, eq=False)
class Study:
    """Everything a report shows.

    ``frame``: a row per trial (number, name, key, status, reason, log, axes, the fields of its label, metrics,
    costs). ``blocks``: number, block, stream, error, mse, and what `derived_blocks` adds. ``repairs``: number,
    block, stream, error_before, error. ``sites``: number, site, block, path, removed, total. ``units``: name -> what methods
    say of units: number, shot, block, kind, and their own columns. ``stages``: a row
    per stage of the plan: key, kind, slug, status, seconds, peak_gib. ``long``: a row per number of a trial, with the columns
    LONG; the metrics in ``frame`` are these. ``protocols``: digest -> how the numbers with it were measured. ``rows``: metrics
    from outside the package by name.
    ``trials``: number -> {config, overrides, stages, key} as planned.
    """

    name: str
    folder: Path
    store: Path
    created: str
    argv: tuple[str, ...]
    frame: pd.DataFrame
    blocks: pd.DataFrame
    repairs: pd.DataFrame
    sites: pd.DataFrame
    units: Mapping[str, pd.DataFrame]
    stages: pd.DataFrame
    long: pd.DataFrame
    protocols: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Metric]
    trials: Mapping[int, Mapping[str, Any]]
    versions: Mapping[str, str]

    @property
    def corpora(self) -> list[str]:
        """Test corpora with a perplexity, in order of appearance."""
        return PPL.found(self.frame)

    @property
    def tasks(self) -> list[str]:
        """Zero-shot tasks with an accuracy, in order of appearance."""
        return [task for task in ACC.found(self.frame) if ACC.at(task) != MEAN_ACC]

    @property
    def held_out(self) -> list[str]:
        """Corpora of the held-out error streams."""
        return HELD_OUT_ERROR.found(self.frame)

    @property
    def facets(self) -> list[str]:
        """Labels of model and calibration, one for each group of comparable rows."""
        return list(dict.fromkeys(self.frame["facet"]))

    @property
    def variants(self) -> list[str]:
        """Labels of what is compared: the method and whatever else varies beside ratio and seed."""
        return list(dict.fromkeys(self.frame["variant"]))


def suffixes(frame: pd.DataFrame, prefix: str) -> list[str]:
    """What follows ``prefix`` in the frame's columns, in order."""
    return [str(column)[len(prefix) :] for column in frame.columns if str(column).startswith(prefix)]


def collect(place: Path | str, store: Path | None = None) -> Study:
    """Read a plan, the one of a study's folder or the file that ``place`` names, and every record that it names.

    ``store``: where the records are, if not where the plan says.

    Raises:
        StoreError: the folder holds no readable plan, or its store is not there.
    """
    folder, file = plan_place(Path(place))
    plan = _read_plan(file)
    asked, store = store is not None, store_place(folder, str(plan["store"]), store)
    require_store(folder, store, asked=asked)
    made = index(store)
    stages = {
        key: _stage(folder, store, made, key, planned)
        for key, planned in plan["stages"].items()
        if kind_of(planned["kind"]).home == "store"
    }
    trials = sorted(plan["trials"], key=lambda trial: trial["number"])
    labels = label_trials([trial["config"] for trial in trials])
    outside = _outside_rows(stages.values())
    rows, long, protocols, found = (
        [],
        list[dict[str, Any]](),
        dict[str, Mapping[str, Any]](),
        {name: list[dict[str, Any]]() for name in TABLES},
    )
    units: dict[str, list[dict[str, Any]]] = {}
    for trial, label in zip(trials, labels, strict=True):
        number = trial["number"]
        own = {role: stages[key] for role, key in trial["stages"].items() if key in stages}
        numbers = list(_numbers(own))
        rows.append(
            _row(trial, own, stages)
            | {n.column: n.value for n in numbers}
            | _cost(own, stages)
            | asdict(label)
        )
        protocols |= {digest_of(n.protocol): n.protocol for n in numbers if n.protocol}
        long += [_long_row(trial, n, outside) for n in numbers if kind_of(n.kind).mirrored]
        tables = _tables(own)
        for name, into in found.items():
            into += [{"number": number, **row} for row in tables.get(name, ())]
        for name in (name for name in tables if name.startswith(UNITS)):
            units.setdefault(name.removeprefix(UNITS), []).extend(
                {"number": number, **row} for row in tables[name]
            )
    tables = {name: _table(found[name], least) for name, least in TABLES.items()}
    frame = derived(pd.DataFrame(rows, dtype=object))  # object: whole numbers stay whole beside gaps
    return Study(
        name=str(plan.get("study", folder.name)),
        folder=folder,
        store=store,
        created=str(plan.get("created", "")),
        argv=tuple(str(word) for word in plan.get("argv", ())),
        frame=frame,
        blocks=derived_blocks(tables["blocks"]),
        repairs=tables["repair"],
        sites=tables["sites"],
        units={name: pd.DataFrame(rows, dtype=object) for name, rows in units.items()},
        stages=pd.DataFrame([_stage_row(stage) for stage in stages.values()]),
        long=pd.DataFrame(long, columns=list(LONG), dtype=object),
        protocols=protocols,
        rows=outside,
        trials={trial["number"]: trial for trial in trials},
        versions=_versions(stages.values()),
    )


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plan["trials"], list) or not isinstance(plan["stages"], dict) or not plan["trials"]:
            raise ValueError("it lists no trials")
        return plan
    except FileNotFoundError:
        raise StoreError(
            f"{path.parent} is no study: {path.name} is missing. Give the folder of a study."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}). Run the study's command again, it rewrites it."
        ) from error


def _stage(
    study: Path, store: Path, made: Mapping[str, Path], key: str, planned: Mapping[str, Any]
) -> dict[str, Any]:
    """A planned stage with its record (if DONE) or its failure (if the study noted one).

    ``made``: the store's folders by the first 16 digits of their keys; another study may have named them.
    """
    kind, slug = str(planned["kind"]), str(planned.get("slug", ""))
    place = store / str(planned.get("folder") or f"{kind}/{slug}-{key[:16]}")
    folder = place if is_done(place) else made.get(key[:16], place)
    record, damage = None, ""
    if is_done(folder):
        try:
            record = asdict(read_record(folder, key))
        except StoreError as error:
            damage = str(error)
    failure = None if record or damage else _read_json(study / "failures" / f"{key[:16]}.json")
    stage = {"key": key, "kind": kind, "slug": slug, "inputs": planned.get("inputs") or {}}
    return stage | {"record": record, "failure": failure, "damage": damage}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or being written: the stage counts as unfinished
        return None
    return data if isinstance(data, dict) else None


def _row(trial: Mapping[str, Any], own: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    config = trial["config"]
    status, reason, log = _status(own, stages)
    row: dict[str, Any] = {"number": trial["number"], "name": trial["name"], "key": trial["key"]}
    row |= {"status": status, "reason": reason, "log": log}
    row |= {
        "pattern": _at(config, "sparsity", "pattern"),
        "ratio": as_float(_at(config, "sparsity", "ratio")),
    }
    for group in ("allocation", "method", REPAIR, "calibration"):
        row[group] = _at(config, group, "name")
    row |= {name: _at(config, "calibration", name) for name in ("n_samples", "seq_len")}
    row["seed"] = config.get("seed")
    if row[REPAIR] not in (None, NO_REPAIR) and isinstance(config.get(DATA), Mapping):
        row[DATA] = config[DATA].get("name")
        counts = parts_of(config[DATA].get("parts"), config["calibration"]["n_samples"])
        row |= {f"{DATA}/{part}": count for part, count in counts.items()}
    return row


@dataclass(frozen=True)
class _Number:
    """A metric of a record: of which role and kind, its name there and among all of a trial, how it was measured."""

    role: str
    kind: str
    name: str
    column: str
    value: Any
    protocol: Mapping[str, Any] | None


def _numbers(own: Mapping[str, Any]) -> Iterator[_Number]:
    for role, stage in own.items():
        record = stage["record"] or {}
        prefix, protocols = metric_prefix(stage["kind"], role), record.get("protocols") or {}
        for name, value in (record.get("metrics") or {}).items():
            yield _Number(
                role, stage["kind"], name, prefix + name, number_or_text(value), protocols.get(name)
            )


def _long_row(trial: Mapping[str, Any], number: _Number, outside: Mapping[str, Metric]) -> dict[str, Any]:
    metric = metric_of(number.name, outside) or Metric(
        number.name, number.name
    )  # of a kind of stage from outside
    protocol = digest_of(number.protocol) if number.protocol else ""
    of = metric.rest(number.name) if number.name != metric.name else ""
    whose = (trial["number"], trial["name"], trial["config"].get("seed"), number.role)
    values = (*whose, metric.name, of, number.value, metric.unit, metric.better, protocol)
    return dict(zip(LONG, values, strict=True))


def _outside_rows(stages: Iterable[Mapping[str, Any]]) -> dict[str, Metric]:
    """Metrics from outside the package, as the records of the stages that measured them say."""
    found: dict[str, Metric] = {}
    for stage in stages:
        for name, row in ((stage["record"] or {}).get("rows") or {}).items():
            found[name] = Metric(**row)
    return found


def _cost(own: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    """What each stage of a trial took and where it ran, and the seconds of all that it stands on."""
    row: dict[str, Any] = {}
    for role, stage in own.items():
        record = stage["record"] or {}
        for name, value in (record.get("cost") or {}).items():
            row[COST.at(f"{role}/{name}")] = number_or_text(value)
        host = (record.get("provenance") or {}).get("host")
        if host is not None:
            row[COST.at(f"{role}/host")] = str(host)
    line = _closure(own.values(), stages)
    seconds = [as_float((stage["record"] or {}).get("cost", {}).get("seconds")) for stage in line]
    done = bool(own) and all(stage["record"] for stage in own.values())
    return row | {COST.at("seconds"): float(np.nansum(seconds)) if done else float("nan")}


def _status(own: Mapping[str, Any], stages: Mapping[str, Any]) -> tuple[str, str, str]:
    """(status, reason, log): failed if any stage on the way has failed, done if all are there."""
    missing = [stage for stage in _closure(own.values(), stages) if not stage["record"]]
    if own and all(stage["record"] for stage in own.values()):
        return DONE, "", ""
    for stage in missing:
        if stage["damage"]:
            return UNFINISHED, f"{stage['kind']}: {' '.join(stage['damage'].split())}", ""
        if stage["failure"]:
            error = str(stage["failure"].get("reason") or "failed without words")
            log = str(stage["failure"].get("log") or "")
            return FAILED, f"{stage['kind']}: {' '.join(error.split())}", log
    return UNFINISHED, f"{missing[0]['kind']} is not finished" if missing else "its stages are unknown", ""


def _closure(own: Iterable[Mapping[str, Any]], stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages and all that they stand on, inputs first. A sweep's trajectory may be long: no recursion."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [(stage["key"], False) for stage in reversed(list(own))]
    while waiting:
        key, ready = waiting.pop()
        if key in found or key not in stages:
            continue
        if ready:
            found[key] = stages[key]
        else:
            waiting.append((key, True))
            waiting += [(str(parent), False) for parent in stages[key]["inputs"].values()]
    return list(found.values())


def _tables(own: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for stage in own.values():
        if kind_of(stage["kind"]).of_trial:
            tables |= (stage["record"] or {}).get("tables") or {}
    return tables


def _stage_row(stage: Mapping[str, Any]) -> dict[str, Any]:
    cost = (stage["record"] or {}).get("cost") or {}
    status = DONE if stage["record"] else FAILED if stage["failure"] else UNFINISHED
    row = {"key": stage["key"], "kind": stage["kind"], "slug": stage["slug"], "status": status}
    return row | {name: as_float(cost.get(name)) for name in ("seconds", "peak_gib")}


def _versions(stages: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Commit, hosts and library versions, joined by comma where stages differ."""
    found: dict[str, dict[str, None]] = {}
    for stage in stages:
        provenance = (stage["record"] or {}).get("provenance") or {}
        versions = provenance.get("versions")
        flat = {name: provenance.get(name) for name in ("commit", "host")}
        flat |= versions if isinstance(versions, dict) else {}
        for name, value in flat.items():
            if isinstance(value, (str, int, float)) and value != "":
                found.setdefault(str(name), {})[str(value)] = None
    return {name: ", ".join(values) for name, values in found.items()}


def _table(rows: list[dict[str, Any]], least: tuple[str, ...]) -> pd.DataFrame:
    columns = list(dict.fromkeys([*least, *(key for row in rows for key in row)]))
    frame = pd.DataFrame(rows, columns=columns)
    for name in _NUMBERS:
        if name in frame:
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def _at(config: Mapping[str, Any], group: str, name: str) -> Any:
    inner = config.get(group)
    return inner.get(name) if isinstance(inner, Mapping) else None


def number_or_text(value: Any) -> Any:
    """``value`` with the strings inf, -inf and nan, which JSON cannot hold as numbers, made numbers again."""
    return float(value) if value in ("inf", "-inf", "nan") else value


def as_float(value: Any) -> float:
    """``value`` as a float, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
