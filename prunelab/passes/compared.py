"""Statistics of several token sets at once, for a method that compares kinds of text (arXiv:2603.13418).

A block's values are those on the mask's tokens, as for any method, and beside them, under the name ``domains``, those on
both halves of every token set. All streams move together, through the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.models.activation import Shelf
from prunelab.models.decoder import Decoder
from prunelab.passes.chooser import check_values
from prunelab.passes.collect import BlockValues, Needs, Progress
from prunelab.passes.source import Source
from prunelab.stats.base import Values
from prunelab.stats.domain import DOMAINS, Domain


@dataclass(frozen=True, eq=False)
class Halves:
    """The sources of one token set's even and odd sequences, with their numbers of tokens."""

    sources: tuple[Source, Source]
    n_tokens: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Compared:
    """A source of the mask's tokens, ``main``, and of all token sets by halves, the mask's first. ``needs``: of both."""

    main: Source
    domains: tuple[Halves, ...]
    needs: Needs

    def block(self, decoder: Decoder, index: int, *, advancing: bool) -> BlockValues:
        """Run the block on all streams. Raises ModelError naming the layer whose statistics are not finite."""
        values = self.main.block(decoder, index, advancing=advancing)
        found: list[list[BlockValues]] = []
        for one in self.domains:
            found.append([half.block(decoder, index, advancing=advancing) for half in one.sources])
        for halves in found:
            for half in halves:
                for name, of_layer in half.items():
                    check_values(name, of_layer, self.needs)
        return {
            name: {**of_layer, DOMAINS: tuple(self._domains(name, found))}
            for name, of_layer in values.items()
        }

    def advance(self, decoder: Decoder, index: int) -> None:
        """Run the block on all streams without looking."""
        for source in self._all():
            source.advance(decoder, index)

    def fork(self, needs: Needs, shelf: Shelf) -> Compared:
        """Copy all streams."""
        return self._each(lambda source: source.fork(needs, shelf), needs)

    def close(self, shelf: Shelf) -> None:
        """Give all streams' states back."""
        for source in self._all():
            source.close(shelf)

    def hold(self, decoder: Decoder, shelf: Shelf, progress: Progress | None) -> Compared:
        """Collect all of the model on the mask's tokens; on the others a block at a time, once more and in order.

        Only gradients ask for all blocks of all of them at once: they come last to first.
        """
        if self.needs.backward:
            return self._each(lambda source: source.hold(decoder, shelf, progress), self.needs)
        return Compared(self.main.hold(decoder, shelf, progress), self.domains, self.needs)

    def release(self, name: str) -> Values:
        """Take a layer's statistics out of what is held: those on the mask's tokens, as the others are used up."""
        for half in self._all()[1:]:
            half.release(name)
        return self.main.release(name)

    def _all(self) -> list[Source]:
        return [self.main, *(half for one in self.domains for half in one.sources)]

    def _each(self, change: Callable[[Source], Source], needs: Needs) -> Compared:
        main = change(self.main)
        domains = tuple(
            Halves((change(one.sources[0]), change(one.sources[1])), one.n_tokens) for one in self.domains
        )
        return Compared(main, domains, needs)

    def _domains(self, name: str, found: Sequence[Sequence[BlockValues]]) -> list[Domain]:
        return [
            Domain((even[name], odd[name]), one.n_tokens)
            for one, (even, odd) in zip(self.domains, found, strict=True)
        ]


def compared(
    main: Source, texts: Sequence[Tensor], needs: Needs, open_source: Callable[[Tensor], Source]
) -> Compared:
    """Return the source of ``texts``, each (n, seq_len) int64, the mask's first, beside ``main``.

    ``open_source`` makes a source of tokens. Raises ConfigError for a text of a single sequence, which has no halves.
    """
    found = []
    for tokens in texts:
        if len(tokens) < 2:
            hint = "Each text is divided in two, to tell texts from draws of one."
            raise ConfigError("calibration.n_samples", len(tokens), "2 or more with domains", hint)
        even, odd = tokens[0::2], tokens[1::2]
        found.append(Halves((open_source(even), open_source(odd)), (even.numel(), odd.numel())))
    return Compared(main, tuple(found), needs)
