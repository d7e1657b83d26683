"""What a method of scope ``unit`` may ask the whole model before units are chosen: what leaving some out does to the loss.

A view shows one block. A method that has to know what units do to what the model says in the end has ``weigh`` (see
prunelab.methods.base): all units' prices come first, then ``weigh`` asks a judge and gives every unit its final importance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

DENSE_TO_PRUNED, PRUNED_TO_DENSE, CROSS_ENTROPY = "dense_to_pruned", "pruned_to_dense", "ce"


@dataclass(frozen=True, eq=False)
class Priced:
    """What a method said of the units of one kind of one block.

    ``price``: of one unit, in what the budget counts. ``alive`` (count,) bool: not removed by an earlier shot. ``open``:
    whether units may go; a protected block's may not. ``importance`` (count,) float64 and ``evidence``: as ``study`` gave
    them. ``depth``: of the block, 0 the first, 1 the last.
    """

    name: str
    block: int
    kind: str
    depth: float
    price: float
    alive: Tensor
    open: bool
    importance: Tensor
    evidence: Any


@dataclass(frozen=True, eq=False)
class Weighed:
    """The final importance (count,) float64 of units by ``Priced.name``; of a name that is missing it stays as it was.

    ``evidence``: by name, in the place of what ``study`` gave. ``tables``: rows of plain values by the name of a table.
    """

    importance: Mapping[str, Tensor]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)


class Judge(Protocol):
    """The model as a shot found it, on the calibration tokens. It is the same to the bit whatever was asked of it.

    Its token sets count from 0, the mask's own; then those of ``domains``. The last windows of each, as many as the method's
    ``held_out`` says, were in no statistic.
    """

    @property
    def n_texts(self) -> int:
        """How many token sets there are."""
        ...

    @property
    def budget(self) -> float:
        """What may go in all, in prices; units that earlier shots removed count."""
        ...

    @property
    def min_units(self) -> int:
        """How many units of a kind have to stay in a block, removed ones not counted."""
        ...

    @property
    def say(self) -> Callable[[str, int, int], None]:
        """Tell how far a phase is: name, done, total."""
        ...

    def windows(self, text: int, *, held_out: bool) -> range:
        """The windows of a token set that are held out, or the others."""
        ...

    def generator(self, what: str) -> torch.Generator:
        """Return a generator on the CPU, the same for the same word, seed and shot."""
        ...

    def keep(self, importance: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return by name which units (count,) bool the shot would keep, were this the importance (count,) of all."""
        ...

    def loss(
        self, masks: Mapping[str, Tensor], windows: Sequence[int], *, text: int = 0, kind: str = DENSE_TO_PRUNED
    ) -> Tensor:  # fmt: skip
        """Return a mean over tokens of ``windows`` in nats, a float64 scalar on the CPU.

        What a unit gives to its output map is multiplied by its factor in ``masks`` (count,), by name; a head's channels
        all by its one. ``kind``: ``dense_to_pruned``, KL of the model as it is to the masked one; ``pruned_to_dense``, the
        other way round; ``ce``, the masked model's cross-entropy. Gradients reach the masks, no weight.
        """
        ...

    def changes(self, removals: Sequence[tuple[str, Tensor]]) -> list[float]:
        """Return by how much the mean token loss on the mask's tokens rises, in nats, without the units (k,) int64 of each
        removal: the name, and the numbers of units that are alive."""
        ...
