"""What a repair is: a frozen dataclass without defaults, built from ``conf/reconstruction/<name>.yaml`` (``name``, ``revision``,
raised when the same inputs give other numbers, and fields of its own). It is of one of two scopes, which its class says
as a literal ``scope``.

``block`` (and so without the literal): :class:`Reconstruction`; the shortest is exact.py. It says which blocks it takes
together (``window``, moved on by ``stride``) and repairs the kept weights of such a unit in place, and whatever else of
its blocks it likes, towards what the dense blocks compute. walk.py owns the streams, the masks, the order, progress and
the report; it stores every parameter of a block that is not the dense model's any more.

``model``: :class:`ModelRepair`, such as lora.py. It gets the pruned model and the tokens, and repairs all of it in steps
of its own; the dense weights are gone by then. It may also stand between the shots of a pruning, by a file of
``conf/between_shots``: then it corrects what each shot but the last has left, and no part of it is kept. whole.py owns the
masks, parts, ranks and the losses before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from prunelab.distributed.group import Group
from prunelab.models.activation import Activations, Shelf
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.reconstruction.streams import Streams
from prunelab.sparsity.mask import Mask
from prunelab.structures.state import StateReader

Target = Literal["local", "global"]
Scope = Literal["block", "model"]
Held = tuple[Tensor, Tensor]  # a parameter and values that it may hold


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

    def hold(self, weight: Tensor, bias: Tensor | None) -> list[Held]:
        """Return the module's parameters with the values that they shall hold."""
        pairs = [(self.linear.weight, weight)]
        return pairs if bias is None else [*pairs, (self.linear.bias, bias)]


@dataclass(frozen=True, eq=False)
class Other:
    """A parameter of a unit's block outside its linear layers, such as a norm's gain: its full name, the parameter,
    and its dense values."""

    name: str
    parameter: nn.Parameter
    dense: Tensor

    @property
    def is_dense(self) -> bool:
        """Whether it holds the dense model's bits."""
        return torch.equal(self.parameter.data, self.dense)


@dataclass(frozen=True, eq=False)
class Members:
    """The parameters of a block: its pruned linear layers, and the others."""

    layers: tuple[Layer, ...]
    others: tuple[Other, ...]

    def dense(self) -> list[Held]:
        """Return every parameter with its dense values."""
        pairs = [pair for layer in self.layers for pair in layer.hold(layer.weight, layer.bias)]
        return [*pairs, *((other.parameter, other.dense) for other in self.others)]


@dataclass(frozen=True, eq=False)
class Unit:
    """Consecutive blocks to repair together, with pruned weights in place; ``members`` of each.

    ``calibration``: streams at the input of the first block; ``stopping``: streams of the text that may end
    training early, None without. ``generator``: seeded by (seed, first block), on the CPU.
    """

    decoder: Decoder
    blocks: range
    members: tuple[Members, ...]
    calibration: Streams
    stopping: Streams | None
    generator: torch.Generator
    shelf: Shelf

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The pruned linear layers of all blocks."""
        return tuple(layer for block in self.members for layer in block.layers)

    @property
    def others(self) -> tuple[Other, ...]:
        """The other parameters of all blocks."""
        return tuple(other for block in self.members for other in block.others)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """While open, the dense parameters are in place."""
        with holding(pair for block in self.members for pair in block.dense()):
            yield

    def target(self, streams: Streams, kind: Target, store: Activations) -> None:
        """Write the dense unit's output into ``store``: on the pruned stream (local) or the dense one
        (global)."""
        with self.dense():
            source = streams.dense if kind == "global" else streams.pruned
            streams.transform(source, store, self.blocks)


@contextmanager
def holding(values: Iterable[Held]) -> Iterator[None]:
    """While open, parameters hold those values; nothing is copied."""
    pairs = list(values)
    before = [parameter.data for parameter, _ in pairs]
    try:
        for parameter, value in pairs:
            parameter.data = value
        yield
    finally:
        for (parameter, _), value in zip(pairs, before, strict=True):
            parameter.data = value


class Reconstruction(Protocol):
    """Repairs a unit in place; removed weights stay exactly zero.

    A repair may also have a field ``masks``, which planning reads: ``before`` (all blocks are pruned by a stage of
    their own, and so without the field), ``between`` (each is pruned when a unit takes it up, on the stream of blocks
    already repaired, as in arXiv:2406.15524) or ``by_pattern`` (between, where a pattern's choice is made block by
    block). To ``repair`` it makes no difference.
    """

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
        """Repair the unit's kept weights in place; removed weights stay zero. Return numbers for the report.

        ``say({"phase": ..., "done": ..., "total": ...})`` tells people how far it is; other rows are not understood.
        """
        ...


@dataclass(frozen=True, eq=False)
class Whole:
    """A pruned model to repair as a whole, its pruned weights in place; nothing of the dense one is at hand.

    ``masks``: of every linear layer, by name. ``tokens``: (n, seq_len) int64; ``batch_size``: how many of them fit in a
    forward at a time, which may leave no trace but rounding. ``group``: ranks that hold the same model and tokens; each
    takes its share of a step, sums are made by ``group.sum``, and all must end with the same bits.
    ``done``, ``start``: the steps that an earlier attempt finished and what it saved after the last of them, read tensor
    by tensor; 0 and None at the beginning. ``save(done, tensors)`` keeps tensors by name in the place of those before;
    it may end the work there, so everything that later steps depend on has to be among them. ``log(row)``: a row for
    metrics.jsonl, ``{"event": ..., "step": ..., numbers}``.
    """

    decoder: Decoder
    masks: Mapping[str, Mask]
    tokens: Tensor
    batch_size: int
    seed: int
    group: Group
    done: int
    start: StateReader | None
    save: Callable[[int, Mapping[str, Tensor]], None]
    log: Callable[[Mapping[str, Any]], None]


class ModelRepair(Protocol):
    """Repairs a pruned model in place, all of it at once; removed weights are exactly zero afterwards."""

    scope: ClassVar[Scope]

    @property
    def name(self) -> str:
        """Name in reports."""
        ...

    def repair(self, whole: Whole, say: Callable[[Mapping[str, Any]], None]) -> dict[str, float]:
        """Repair the kept weights in place; return numbers for the report. Same seed, same bits, resumed or not.

        ``say``: as for :class:`Reconstruction`.
        """
        ...


def is_whole(spec: object) -> bool:
    """Say whether a repair takes the model as a whole."""
    return getattr(spec, "scope", "block") == "model"
