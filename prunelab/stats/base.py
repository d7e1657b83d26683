"""What a statistic is: something summed over the tokens that a linear layer or a block reads or writes, one class each.

A statistic's class has two literals that planning reads from its source, ``name`` and ``reads``:

- ``input``: what enters the layer, (..., in_features); layers with one input share one sum;
- ``output``: what leaves it, (..., out_features);
- ``block``: what enters and leaves the block that the layer is in, side by side; its layers share one sum;
- ``parts``: the same two, and between them what the block gives where its MLP adds nothing: the residual stream between
  attention and MLP;
- ``output_gradient``: the gradient of the summed token losses at its output, (..., out_features);
- ``weight_gradient``: what enters and that gradient together, whose products are the gradient of the weight.

The collector starts a running sum per layer (or per shared input), feeds it batch by batch, adds the sums of all
ranks, and finishes it into a value, which the method gets through its view. Everything that has to be known about
such a value (which entries carry a signal, how it is cut down to some entries, how it is stored) its class says.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from prunelab.errors import ConfigError, nearest
from prunelab.statistic import CLASSES, class_of


@dataclass(frozen=True)
class Place:
    """Which sequences a running sum will see: from number ``first`` on of the ``n_sequences`` that all ranks have
    together, each of ``seq_len`` tokens, in their order."""

    first: int
    n_sequences: int
    seq_len: int


class Running(Protocol):
    """A sum that is being collected. ``total`` and ``n_tokens`` are added over ranks.

    It may also have ``place(place: Place)``, called once, before the first tokens: for what is not a plain sum. See
    stats/input_samples.py, whose ranks fill rows of their own.
    """

    total: Tensor
    n_tokens: int

    def add(self, x: Tensor) -> None:
        """Add the tokens of ``x`` (n, seq_len, width). What is added must not depend on n: sum sequence by sequence."""
        ...

    def finish(self) -> Any:
        """Return the value over all tokens; uses up the sum."""
        ...


class BlockRunning(Protocol):
    """The same of what enters and leaves a block."""

    total: Tensor
    n_tokens: int

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add sequences: what enters, ``x``, and what leaves, ``y``, both (n, seq_len, width). What is added must not
        depend on n: sum sequence by sequence."""
        ...

    def finish(self) -> Any:
        """Return the value over all tokens; uses up the sum."""
        ...


class WeightRunning(Protocol):
    """The same of what reads the weight's gradient. ``n_tokens`` counts whatever :meth:`finish` divides by."""

    total: Tensor
    n_tokens: int

    def add(self, x: Tensor, slope: Tensor) -> None:
        """Add sequences: the inputs ``x`` (n, seq_len, C), and ``slope`` (n, seq_len, R), the gradient of the summed
        token losses at the output. What is added must not depend on n: sum sequence by sequence."""
        ...

    def finish(self) -> Any:
        """Return the value over all sequences; uses up the sum."""
        ...


class Kept(Protocol):
    """What every statistic says of its value; built without arguments, its objects hold no state."""

    @property
    def name(self) -> str:
        """What methods write into ``needs``; of a class from outside its dotted name."""
        ...

    @property
    def reads(self) -> str:
        """Of ``prunelab.statistic.READS``."""
        ...

    def live(self, value: Any) -> Tensor | None:
        """Return which entries (width,) carried any signal; None if the value cannot tell."""
        ...

    def restrict(self, value: Any, kept: Tensor) -> Any:
        """Return the value over the entries where ``kept`` (width,) bool is True."""
        ...

    def is_finite(self, value: Any) -> bool:
        """Whether every number that the value was made from was finite."""
        ...

    def pack(self, value: Any) -> Tensor:
        """Return the value as one tensor, to be stored."""
        ...

    def unpack(self, stored: Tensor, width: int, name: str) -> Any:
        """Return the value of a layer called ``name`` from what :meth:`pack` gave; ValueError if it cannot be one.

        ``width``: how many features enter the layer or the block, or leave the layer unless the statistic reads those.
        """
        ...


class Statistic(Kept, Protocol):
    """A statistic of one of: input, output, output gradient. The shortest: stats/input_norm.py."""

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> Running:
        """Return an empty sum over vectors of ``width`` entries, of a layer called ``name`` in messages.

        ``ones``: a last entry 1 stands for the input of a bias.
        """
        ...


class BlockStatistic(Kept, Protocol):
    """A statistic of what a block reads and writes: stats/block_influence.py."""

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> BlockRunning:
        """Return an empty sum over vectors of ``width`` entries, of a block whose first layer is ``name``; no ``ones``."""
        ...


class WeightStatistic(Kept, Protocol):
    """A statistic of the weight's gradient: stats/taylor.py."""

    def start(self, name: str, weight: Tensor, bias: Tensor | None) -> WeightRunning:
        """Return an empty sum for a layer called ``name``, of ``weight`` (R, C) and ``bias`` (R,)."""
        ...


def load_statistic(need: str) -> Statistic | BlockStatistic | WeightStatistic:
    """Return the statistic that ``need`` means: a name of the package's own, or the dotted name of a class.

    Raises ConfigError if there is none.
    """
    module, _, name = class_of(need).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as error:
        allowed = f"{', '.join(CLASSES)}, or the dotted name of a statistic's class"
        hint = nearest(need, CLASSES) or str(error)
        raise ConfigError("method.needs", need, allowed, hint) from None


Values = Mapping[str, Any]  # need -> value, of one layer or of layers that share an input
