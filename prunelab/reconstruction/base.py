"""What a repair is: a frozen dataclass without defaults, built from ``conf/reconstruction/<name>.yaml``.

It says which blocks it takes together (``window``, moved on by ``stride``) and repairs the kept weights of
such a unit in place. The walk owns the streams, the masks, the order, progress and the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from prunelab.models.activation import Activations, Shelf
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.reconstruction.streams import Streams
from prunelab.sparsity.mask import Mask

Target = Literal["local", "global"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A pruned linear layer of a unit: its site, its mask, and the dense weight (R, C) and bias (R,)."""

    site: LinearSite
    mask: Mask
    weight: Tensor
    bias: Tensor | None

    @property
    def linear(self) -> nn.Linear:
        """The module, which holds the pruned weights."""
        return self.site.linear


@dataclass(frozen=True, eq=False)
class Unit:
    """Consecutive blocks to repair together, with pruned weights in place.

    ``calibration``: streams at the input of the first block; ``stopping``: streams of the text that may end
    training early, None without. ``generator``: seeded by (seed, first block), on the CPU.
    """

    decoder: Decoder
    blocks: range
    layers: tuple[Layer, ...]
    calibration: Streams
    stopping: Streams | None
    generator: torch.Generator
    shelf: Shelf

    @contextmanager
    def dense(self) -> Iterator[None]:
        """While open, the dense weights are in place."""
        with dense_weights(self.layers):
            yield

    def target(self, streams: Streams, kind: Target, store: Activations) -> None:
        """Write the dense unit's output into ``store``: on the pruned stream (local) or the dense one
        (global)."""
        with self.dense():
            source = streams.dense if kind == "global" else streams.pruned
            streams.transform(source, store, self.blocks)


@contextmanager
def dense_weights(layers: tuple[Layer, ...]) -> Iterator[None]:
    """While open, ``layers`` hold their dense weights; nothing is copied."""
    before = [(layer.linear.weight.data, _data(layer.linear.bias)) for layer in layers]
    try:
        for layer in layers:
            put(layer.linear, layer.weight, layer.bias)
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            put(layer.linear, *held)


def put(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Make ``weight`` (R, C) and ``bias`` (R,) the storage of ``linear``'s parameters."""
    linear.weight.data = weight
    if bias is not None:
        linear.bias.data = bias


def _data(parameter: nn.Parameter | None) -> Tensor | None:
    return None if parameter is None else parameter.data


class Reconstruction(Protocol):
    """Repairs a unit in place; removed weights stay exactly zero."""

    @property
    def name(self) -> str:
        """Name in reports."""
        ...

    @property
    def window(self) -> int:
        """Blocks per unit."""
        ...

    @property
    def stride(self) -> int:
        """Blocks from one unit to the next, at most ``window``; less means that units overlap."""
        ...

    @property
    def early_stop(self) -> bool:
        """Whether text of its own decides when training ends."""
        ...

    def repair(self, unit: Unit, say: Callable[[Mapping[str, Any]], None]) -> dict[str, float]:
        """Repair the unit's kept weights; return numbers for the report."""
        ...
