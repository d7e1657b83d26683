"""Kinds of stages, a row each: all that planning, launching, status, report and trackers have to know of one.

A new kind is a row here and a module with ``run(identity, context) -> Result`` under ``prunelab/stages``. A kind from
outside the package has no row: the trial's config names its class, and it is like the row ``OUTSIDE``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from prunelab.config.contract import WHOLE
from prunelab.config.outside import check_metric, check_stage
from prunelab.errors import ConfigError

CALIBRATE, DENSE, STATISTICS, PRUNE = "calibrate", "dense", "statistics", "prune"
RECONSTRUCT, EVALUATE, SPEED, TRACK = "reconstruct", "evaluate", "speed", "track"


@dataclass(frozen=True)
class Cost:
    """What a cluster is asked for, per GiB of the model's weights: memory in GiB, minutes on one GPU."""

    memory_gib: float
    minutes: float


@dataclass(frozen=True)
class Kind:
    """One kind of stage.

    ``module``: its function ``run`` does the work. ``home``: whose folder says that it is done; the store's are
    shared by all studies, what a study told its trackers is its own. ``of_trial``: its metrics are the trial's
    numbers under their own names; else they go by the stage's role. ``artifact``: the type under which trackers know
    its outputs, None if it leaves none. ``weights``: its outputs are the trial's model. ``column``: status shows it.
    ``mirrored``: its rows are a curve to show. ``shares``: several ranks share its sums over the mask's tokens.
    """

    name: str
    module: str
    cost: Cost
    home: Literal["store", "study"] = "store"
    of_trial: bool = False
    artifact: str | None = None
    weights: bool = False
    column: bool = True
    mirrored: bool = True
    shares: bool = False


OUTSIDE = Kind("", "prunelab.stages.outside", Cost(1.6, 2.0))
_ROWS = (
    Kind(CALIBRATE, "prunelab.stages.calibrate", Cost(0.0, 0.0), artifact="tokens", column=False, mirrored=False),
    Kind(DENSE, "prunelab.stages.dense", Cost(1.3, 1.0), artifact="dense"),
    # one forward beside the sums of a block
    Kind(STATISTICS, "prunelab.stages.statistics", Cost(2.0, 2.0), column=False, mirrored=False, shares=True),
    # factors and gradients of a block beside the weights
    Kind(PRUNE, "prunelab.stages.prune", Cost(3.0, 4.0), of_trial=True, artifact="model", weights=True, shares=True),
    Kind(RECONSTRUCT, "prunelab.stages.reconstruct", Cost(3.0, 4.0), of_trial=True, artifact="model", weights=True),
    Kind(EVALUATE, "prunelab.stages.evaluate", Cost(1.6, 2.0), of_trial=True),
    # the dense model and the compacted one side by side, with a cache of keys and values each
    Kind(SPEED, "prunelab.stages.speed", Cost(2.4, 1.0), of_trial=True, column=False),
    OUTSIDE,
    Kind(TRACK, "prunelab.launch.track.mirror", Cost(0.0, 0.0), home="study", mirrored=False),
)  # fmt: skip
KINDS: Mapping[str, Kind] = {row.name: row for row in _ROWS if row.name}
_GENERATION = Cost(1.6, 4.0)  # tokens that the dense model writes


def check_outside(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield what is wrong with the kinds of stages, and with the metrics, that a trial brings from outside the package."""
    stages, evaluation = config.get("stages"), config.get("evaluation")
    stages = stages if isinstance(stages, Mapping) else {}
    for name, option in stages.items():
        yield from check_stage(str(name), option, tuple(KINDS))
    metrics = evaluation.get("metrics") if isinstance(evaluation, Mapping) else None
    for name, option in metrics.items() if isinstance(metrics, Mapping) else ():
        yield from check_metric(str(name), option, {*KINDS, *map(str, stages)})


def kind_of(name: str) -> Kind:
    """Return the row of a kind; a name without a row is a kind from outside the package."""
    return KINDS.get(name) or replace(OUTSIDE, name=name)


def position(name: str) -> int:
    """Return where a kind stands among the others: every stage comes after those of smaller positions."""
    return _ROWS.index(KINDS.get(name, OUTSIDE))


def in_order(names: Iterable[str]) -> list[Kind]:
    """Return the kinds of these names, each once, in the table's order."""
    return [kind_of(name) for name in sorted(set(names), key=lambda name: (position(name), name))]


def cost_of(name: str, identity: Mapping[str, Any]) -> Cost:
    """Return what a stage costs per GiB of weights; text that a model writes costs more than text that is read."""
    return _GENERATION if "recipe" in identity else kind_of(name).cost


def shares_sums(name: str, inputs: Iterable[str], identity: Mapping[str, Any]) -> bool:
    """Say whether several ranks help with a stage: one that shares sums and reads the mask's tokens itself, or a repair
    of a model as a whole."""
    return (kind_of(name).shares and CALIBRATE in inputs) or (
        name == RECONSTRUCT and identity.get("scope") == WHOLE
    )


def metric_prefix(name: str, role: str) -> str:
    """Return what stands before the names of a stage's metrics where all numbers of a trial stand together."""
    return "" if kind_of(name).of_trial else f"{role}/"
