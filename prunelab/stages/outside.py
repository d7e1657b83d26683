"""A stage of a class from outside the package: something else that is done with, or measured on, the trial's model.

One file and one YAML (or ``'+stages.latency={_target_: mine.Latency, repeats: 3}'``)::

    @dataclass(frozen=True)
    class Latency:
        repeats: Annotated[int, "x >= 1"]
        reads = ("test",)  # token sets: of mask, test, held_out; leave it out for none

        def run(self, trial: Pruned) -> Mapping[str, float]:
            (tokens,) = trial.tokens.values()
            ...
            return {"ms": ms}

    # my_conf/stages/latency.yaml, for: python -m prunelab --config-dir my_conf +stages=latency
    latency:
      _target_: mine.Latency
      repeats: 3

It runs once the trial's weights are final. Its numbers are columns ``latency/ms`` of the report and of W&B, it is a
column of ``status``, and it is kept under a key: model, weights, token sets, the class and its fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from prunelab.config.build import build
from prunelab.errors import StageError
from prunelab.evaluation.cost import metered
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder
from prunelab.stages import calibrate, setting
from prunelab.stages.measured import of_model, protocols
from prunelab.stages.part import STATE
from prunelab.store.context import Context, Result
from prunelab.structures.state import StateReader, apply_state, open_state

_WEIGHTS = ("reconstruct", "prune")  # roles of the input that holds the trial's weights: the last there is


@dataclass(frozen=True)
class Pruned:
    """What such a stage works on.

    ``decoder``: the model with the trial's weights; ``state``: masks and weights by site; ``tokens``: (n, length) of
    int64 by role (``mask``, ``test/austen``). ``context``: ``log(row)`` writes a row that trackers show,
    ``progress(what, done, total)`` tells people, ``outputs`` is a folder for files to keep.
    """

    decoder: Decoder
    state: StateReader
    tokens: Mapping[str, Tensor]
    context: Context


class OutsideStage(Protocol):
    """The class that ``_target_`` names, built with the option's other values. ``reads`` may be left out."""

    def run(self, trial: Pruned) -> Mapping[str, Any]:
        """Return numbers by name. Equal inputs have to give equal numbers, or the name says that they do not."""
        ...


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Build the class and run it; its numbers are the stage's metrics. Raises StageError if it returns none."""
    name = context.folder.parent.name
    with metered() as cost:
        device = setting.prepare(context.runtime)
        stage: OutsideStage = build(context.runtime["stage"], f"stages.{name}")
        decoder = load_decoder(context.runtime["model"], device=device)
        weights = next(role for role in _WEIGHTS if role in context.inputs)
        state = open_state(context.inputs[weights].folder / STATE)
        apply_state(decoder, state)
        tokens = {
            role: calibrate.read(found.folder) for role, found in context.inputs.items() if role != weights
        }
        metrics = stage.run(Pruned(decoder, state, tokens, context))
        cost.tokens = sum(text.numel() for text in tokens.values())
    if not isinstance(metrics, Mapping):
        raise StageError(
            f"stages.{name}: run returned {type(metrics).__name__}; a mapping of numbers is wanted."
        )
    metrics = {str(key): _number(name, str(key), value) for key, value in metrics.items()}
    context.log({"event": name, **metrics})
    how = replace(of_model(identity["model"]), definition=json.dumps(identity["stage"], sort_keys=True))
    return Result(
        dict(metrics), cost=cost.values(), protocols=protocols(dict.fromkeys(metrics, how), metrics)
    )


def _number(stage: str, key: str, value: Any) -> int | float:
    """Return a number as plain Python has it, also one of NumPy or of a tensor; StageError for anything else."""
    try:
        plain = value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError):  # several numbers
        plain = None
    if not key or not isinstance(plain, int | float):
        raise StageError(
            f"stages.{stage}: run returned {key!r}: {type(value).__name__}; numbers by name are wanted, and a name has letters."
        )
    return plain
