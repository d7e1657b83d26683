"""Where the repair walk gets a block as pruned: from a stored state, or from who prunes it when a unit takes it up.

Both say the same things to the walk, which keeps dense and repaired weights itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from prunelab.models.activation import Shelf
from prunelab.models.decoder import Decoder
from prunelab.structures.state import SiteState, State, StateReader

AS_PRUNED = (
    "as_pruned/"  # before a layer's name: in a part, what pruning made of a block that is not finished
)


class Pruner(Protocol):
    """Prunes blocks one at a time, on a stream of its own that follows the repaired model."""

    def prune(self, index: int) -> State:
        """Return block ``index`` as pruned, in memory of its own; its dense weights are in place before and after."""
        ...

    def advance(self, index: int) -> None:
        """Move on through block ``index``, which is repaired."""
        ...


@runtime_checkable
class Pruning(Protocol):
    """How blocks shall be pruned between repairs; :class:`prunelab.passes.between.Between` is one."""

    def open(self, decoder: Decoder, shelf: Shelf) -> Pruner:
        """Return who does it; ``decoder`` is dense."""
        ...


class Pruned(Protocol):
    """Blocks as pruned, in the order in which they enter."""

    @property
    def model(self) -> str:
        """Name of the decoder."""
        ...

    def enter(self, index: int, start: StateReader | None) -> None:
        """Make block ``index`` ready, whose dense weights are in place; ``start``: what an earlier attempt left."""
        ...

    def site(self, name: str) -> SiteState:
        """Return a layer as pruned, of a block that has entered and not left."""
        ...

    def parameter(self, name: str) -> Tensor | None:
        """Return a parameter outside linear layers as pruning left it, None if it is the dense one."""
        ...

    def kept(self, indices: Iterable[int]) -> dict[str, SiteState]:
        """Return what a part must hold of unfinished blocks, so that ``enter`` finds it in ``start``."""
        ...

    def leave(self, index: int) -> None:
        """Let a block go, which is repaired and in place."""
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """All masks were chosen before: a state."""

    state: StateReader

    @property
    def model(self) -> str:
        """Name of the decoder that was pruned."""
        return self.state.model

    def enter(self, index: int, start: StateReader | None) -> None:
        """It is there already."""

    def site(self, name: str) -> SiteState:
        """Read the layer."""
        return self.state.site(name)

    def parameter(self, name: str) -> Tensor | None:
        """Read the parameter."""
        return self.state.parameter(name) if name in self.state.parameter_names else None

    def kept(self, indices: Iterable[int]) -> dict[str, SiteState]:
        """Nothing: the state can be read again."""
        return {}

    def leave(self, index: int) -> None:
        """The state has no stream."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Masks are chosen when blocks enter. ``items``: the layers as pruned of blocks that have not left, by block."""

    decoder: Decoder
    pruner: Pruner
    items: dict[int, dict[str, SiteState]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name of the decoder."""
        return self.decoder.name

    def enter(self, index: int, start: StateReader | None) -> None:
        """Prune the block, unless an earlier attempt did."""
        names = [site.name for site in self.decoder.sites(index)]
        if start is None or not set(names) <= set(start.names):
            self.items[index] = dict(self.pruner.prune(index).items)
            return
        known = set(start.names)
        # of a finished block nobody asks any more what pruning made of it
        kept = {name: AS_PRUNED + name if AS_PRUNED + name in known else name for name in names}
        self.items[index] = {name: start.site(place) for name, place in kept.items()}

    def site(self, name: str) -> SiteState:
        """Look the layer up."""
        return next(block[name] for block in self.items.values() if name in block)

    def parameter(self, name: str) -> Tensor | None:
        """Pruning leaves all of them."""
        return None

    def kept(self, indices: Iterable[int]) -> dict[str, SiteState]:
        """Return the layers as pruned."""
        return {AS_PRUNED + name: site for index in indices for name, site in self.items[index].items()}

    def leave(self, index: int) -> None:
        """Move the pruner's stream on."""
        del self.items[index]
        self.pruner.advance(index)
