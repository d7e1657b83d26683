"""Where the statistics of a block come from: collected on the way, read from files, or kept of the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from prunelab.models.activation import Shelf
from prunelab.models.decoder import Decoder
from prunelab.models.stream import Stream, advance, fork
from prunelab.passes.collect import BlockValues, Needs, Progress, collect_block, collect_model
from prunelab.stats.base import Values


class Stored(Protocol):
    """Statistics of the dense model on some token set, a block at a time."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What was collected."""
        ...

    def block(self, decoder: Decoder, index: int) -> BlockValues:
        """Return those of block ``index`` by layer, on the decoder's device."""
        ...


class Source(Protocol):
    """Gives blocks their statistics, first to last. ``advancing`` moves a stream on, with the weights in place."""

    def block(self, decoder: Decoder, index: int, *, advancing: bool) -> BlockValues:
        """Return the statistics of block ``index`` by layer."""
        ...

    def advance(self, decoder: Decoder, index: int) -> None:
        """Move on through block ``index`` without looking."""
        ...

    def fork(self, needs: Needs, shelf: Shelf) -> Source:
        """Return a source at the same place for other needs, which moves on its own."""
        ...

    def close(self, shelf: Shelf) -> None:
        """Give back what a fork holds."""
        ...

    def hold(self, decoder: Decoder, shelf: Shelf, progress: Progress | None) -> Source:
        """Return a source of the same statistics that can be asked again; this one is used up."""
        ...

    def release(self, name: str) -> Values:
        """Return what is still held of a layer, and let it go."""
        ...


@dataclass(frozen=True, eq=False)
class Live:
    """Collects on a stream of hidden states."""

    stream: Stream
    needs: Needs

    def block(self, decoder: Decoder, index: int, *, advancing: bool) -> BlockValues:
        """Run the block on the stream."""
        return collect_block(decoder, index, self.stream, self.needs, advancing=advancing)

    def advance(self, decoder: Decoder, index: int) -> None:
        """Run the block on the stream without looking."""
        advance(decoder, index, self.stream)

    def fork(self, needs: Needs, shelf: Shelf) -> Live:
        """Copy the stream."""
        return Live(fork(self.stream, shelf), needs)

    def close(self, shelf: Shelf) -> None:
        """Give the stream's states back."""
        shelf.discard(self.stream.hidden)

    def hold(self, decoder: Decoder, shelf: Shelf, progress: Progress | None) -> Held:
        """Collect all of the model, walking back as well if a statistic reads gradients."""
        values = collect_model(decoder, self.stream, self.needs, shelf, progress)
        self.close(shelf)
        return Held(values)

    def release(self, name: str) -> Values:
        """Nothing is held."""
        return {}


@dataclass(frozen=True, eq=False)
class Given:
    """Statistics that are there already: in files, or nothing at all (None)."""

    stored: Stored | None

    def block(self, decoder: Decoder, index: int, *, advancing: bool) -> BlockValues:
        """Read them."""
        return {} if self.stored is None else self.stored.block(decoder, index)

    def advance(self, decoder: Decoder, index: int) -> None:
        """Do nothing: there is no stream."""

    def fork(self, needs: Needs, shelf: Shelf) -> Given:
        """The same: files can be read twice."""
        return self

    def close(self, shelf: Shelf) -> None:
        """Do nothing."""

    def hold(self, decoder: Decoder, shelf: Shelf, progress: Progress | None) -> Source:
        """Read all of it."""
        if self.stored is None:
            return self
        blocks = [self.stored.block(decoder, index) for index in range(len(decoder.blocks))]
        return Held({name: values for block in blocks for name, values in block.items()})

    def release(self, name: str) -> Values:
        """Nothing is held."""
        return {}


@dataclass(frozen=True, eq=False)
class Held:
    """Statistics of the whole model in memory."""

    values: BlockValues  # emptied by release

    def block(self, decoder: Decoder, index: int, *, advancing: bool) -> BlockValues:
        """Look them up."""
        return {site.name: self.values.get(site.name, {}) for site in decoder.sites(index)}

    def advance(self, decoder: Decoder, index: int) -> None:
        """Do nothing: there is no stream."""

    def fork(self, needs: Needs, shelf: Shelf) -> Held:
        """The same: they can be looked at twice."""
        return self

    def close(self, shelf: Shelf) -> None:
        """Do nothing."""

    def hold(self, decoder: Decoder, shelf: Shelf, progress: Progress | None) -> Held:
        """It can be asked again as it is."""
        return self

    def release(self, name: str) -> Values:
        """Take a layer's statistics out."""
        return self.values.pop(name, {})
