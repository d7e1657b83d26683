"""How the structures of a pattern are looked at, compared, chosen and taken away: one chooser per pattern.

A shot goes one of two ways. *Block by block*: a block's statistics, its decision, the next block. *The whole model at
once*: prices of everything first, one choice, then layer by layer. The passes ask the chooser, never which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.passes.collect import BlockValues, Needs
from prunelab.sparsity.mask import Mask
from prunelab.statistic import BLOCK, INPUT, PARTS

Tables = Mapping[str, list[dict[str, Any]]]  # name -> rows of plain values
Generators = Callable[[str], torch.Generator]  # by layer name


@dataclass(frozen=True, eq=False)
class Part:
    """Layers that are decided about together, and what the method sees of them.

    ``view``: a View of layers, or of units; ``live``: which rows and columns are in it, None where all are.
    """

    sites: tuple[LinearSite, ...]
    view: Any
    live: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Choice:
    """What goes from every layer, in the chooser's own terms, and what the choice says of itself.

    ``threshold``: the price of the dearest structure that goes, None without one. ``tables``: why, in the method's words.
    """

    layers: Mapping[str, Any]
    threshold: float | None
    tables: Tables = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pruned:
    """Masks of layers by name, and why these structures, in the method's words."""

    masks: dict[str, Mask]
    tables: Tables = field(default_factory=dict)


class Chooser(Protocol):
    """One pattern's way.

    ``kind``: that of its masks. ``joins_bias``: a bias is the last column of its layer's weight. ``looks_twice``:
    where the whole model is compared, what goes is carried out with the statistics at hand once more.
    """

    kind: str
    joins_bias: bool
    looks_twice: bool

    def is_whole(self, method: Any, allocation: object, shots: int) -> bool:
        """Whether all layers are looked at before any is pruned."""
        ...

    def start(self, site: LinearSite) -> Mask:
        """Return the mask of a layer of which nothing is removed yet."""
        ...

    def parts(
        self, sites: Sequence[LinearSite], masks: Mapping[str, Mask], values: BlockValues, needs: Needs,
        generators: Generators,
    ) -> Iterator[Part]:  # fmt: skip
        """Yield the parts of the layers ``sites`` of a block. A part's statistics may be let go with it."""
        ...

    def price(self, method: Any, part: Part, masks: Mapping[str, Mask]) -> dict[str, Any]:
        """Return what structures cost, by layer."""
        ...

    def choose(self, prices: Mapping[str, Any], target: float, allocation: str) -> Choice:
        """Compare all prices; ``target`` is the removed fraction of all weights."""
        ...

    def one(
        self, site: LinearSite, masks: Mapping[str, Mask], values: BlockValues, needs: Needs, generators: Generators
    ) -> Part:  # fmt: skip
        """Return one layer's part, to carry out what was chosen."""
        ...

    def take(
        self, method: Any, site: LinearSite, decision: Any, part: Callable[[], Part], mask: Mask
    ) -> Mask:
        """Carry out one layer's decision, in place; return its new mask, ``mask`` being the one before.

        ``part()`` builds what :meth:`one` gives, if that is needed. A layer that nothing was decided about has None.
        """
        ...

    def prune(self, method: Any, part: Part, ratio: float) -> Pruned:
        """Decide about a part without looking at other parts, and carry it out in place; return its layers' masks."""
        ...

    def decide(self, method: Any, part: Part, ratios: Sequence[float]) -> list[Decision]:
        """Return what goes from a part at each ratio, without looking at other parts."""
        ...


class Weighing(Protocol):
    """A chooser of a pattern whose methods may ask the whole model between prices and choice."""

    def weigh(
        self, method: Any, prices: Mapping[str, Any], target: float, allocation: str, judging: Callable[..., Any]
    ) -> tuple[dict[str, Any], Tables]:  # fmt: skip
        """Return the prices once a method has asked the whole model, and what it says of that; ``judging`` makes a judge."""
        ...


def joined(tables: Iterable[Tables], **where: Any) -> dict[str, list[dict[str, Any]]]:
    """Return tables of the same names as one each, in order; every row begins with ``where``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in tables:
        for name, rows in one.items():
            found.setdefault(name, []).extend({**where, **row} for row in rows)
    return found


Decision = tuple[Tensor, Tensor | None]  # keep (R, C) bool; new weights (R, C), None = as they are
Build = Callable[[Any, Decoder], Chooser]


def check_values(name: str, values: Mapping[str, Any], needs: Needs) -> None:
    """Raise ModelError naming the layer whose statistics are not finite."""
    for need, value in values.items():
        if need in needs.statistics and not needs.statistics[need].is_finite(value):
            reads = needs.statistics[need].reads
            of_block = "what enters or leaves the block of"
            what = {INPUT: "what enters", BLOCK: of_block, PARTS: of_block}.get(
                reads, "gradients or outputs at"
            )
            raise ModelError(
                f"{what} {name} is not finite. Check the checkpoint and the calibration text, "
                "or use model.dtype=float32."
            )
