"""The whole model's loss with some units left out, or scaled: what a method asks between prices and choice.

A loss of masks is walked block by block. Forth: what enters an output map is multiplied by its units' factors; each block's
input waits where hidden states wait. Back: a block is run once more with autograd, which gives the gradient at its
masked inputs and at its own; weights are frozen. So memory is one batch's block inputs and one block's graph. A factor's
gradient is summed over tokens in float32 per sequence and over sequences in float64: batches and ranks do not matter but for
rounding. Of several ranks each walks its share of the windows, and all get the sums.

The reference of a divergence is the model as the shot found it: the dense one, or what earlier shots left. Its last hidden
states are kept, one set per token set that is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.distributed.group import Group
from prunelab.errors import ConfigError
from prunelab.models.activation import Activations, Shelf
from prunelab.models.decoder import Decoder
from prunelab.models.divergence import divergences
from prunelab.models.stream import Stream, advance, call_block, fork, open_stream, token_losses
from prunelab.passes.probes import Removal, loss_changes
from prunelab.pattern.judged import HELD_OUT, JUDGED, judged_with, n_held_out, windows_error
from prunelab.stats.domain import DOMAINS
from prunelab.stats.judge import CROSS_ENTROPY, DENSE_TO_PRUNED, PRUNED_TO_DENSE
from prunelab.stats.unit_view import Member
from prunelab.stats.view import site_generator

KINDS = (DENSE_TO_PRUNED, PRUNED_TO_DENSE, CROSS_ENTROPY)


@dataclass(frozen=True, eq=False)
class Texts:
    """The token sets, each (n, seq_len) int64, the mask's first; the last ``held`` windows of each are for judging only."""

    tokens: tuple[Tensor, ...]
    held: tuple[int, ...]

    @property
    def seen(self) -> tuple[Tensor, ...]:
        """The token sets without those windows."""
        pairs = zip(self.tokens, self.held, strict=True)
        return tuple(tokens[: len(tokens) - held] for tokens, held in pairs)


def asks(method: Any) -> bool:
    """Whether a method, as its fields are, asks the model."""
    return bool(judged_with(vars(method), getattr(method, JUDGED, ())))


def texts_of(method: Any, tokens: Tensor | None, domains: Sequence[Tensor]) -> Texts | None:
    """Return the token sets of a method that asks the model, None for any other.

    Raises ConfigError where there are no tokens or too few windows.
    """
    if not asks(method):
        return None
    if tokens is None:
        raise ConfigError("calibration", None, f"a token set with method={method.name}", "It asks the model.")
    share, least = getattr(method, HELD_OUT, None), 2 if hasattr(method, DOMAINS) else 1
    found = (tokens, *domains)
    for one in found:
        if (error := windows_error(len(one), share, least, method.name)) is not None:
            raise error
    return Texts(found, tuple(n_held_out(len(one), share) for one in found))


@dataclass(frozen=True, eq=False)
class _Open:
    """A token set at block 0, and what left the last block of the model as it is, where a divergence was asked."""

    stream: Stream
    last: list[Activations] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """Factors (C,) of what enters an output map, in the model's dtype, and where their gradients are summed, (C,) float64."""

    linear: nn.Module
    factors: Tensor
    slopes: Tensor


@dataclass(frozen=True, eq=False)
class WholeModel:
    """A :class:`prunelab.stats.judge.Judge`. ``members``: of the units of each kind of each block, by name; ``chosen``: which
    units (count,) bool stay under an importance."""

    decoder: Decoder
    texts: Texts
    batch_size: int
    shelf: Shelf
    group: Group
    seed: int
    shot: int
    say: Callable[[str, int, int], None]
    members: Mapping[str, tuple[int, tuple[Member, ...]]]
    chosen: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    budget: float
    min_units: int
    _streams: dict[int, _Open] = field(default_factory=dict)

    @property
    def n_texts(self) -> int:
        """How many token sets there are."""
        return len(self.texts.tokens)

    def windows(self, text: int, *, held_out: bool) -> range:
        """The last windows, or those before."""
        n, held = len(self.texts.tokens[text]), self.texts.held[text]
        return range(n - held, n) if held_out else range(n - held)

    def generator(self, what: str) -> torch.Generator:
        """Seeded by the run's seed, the word and the shot."""
        return site_generator(self.seed, what, self.shot)

    def keep(self, importance: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Choose as the shot will."""
        return self.chosen(importance)

    def changes(self, removals: Sequence[tuple[str, Tensor]]) -> list[float]:
        """Probe the model on all windows of the mask's tokens; each removal zeroes units in place, and puts them back."""
        asked = [Removal(*self.members[name], units) for name, units in removals]

        def tell(row: Mapping[str, Any]) -> None:
            self.say(row["phase"], row["done"], row["total"])

        return loss_changes(
            self.decoder, self.texts.tokens[0], asked, self.batch_size, placement=self.shelf.placement,
            progress=tell, group=self.group,
        )  # fmt: skip

    def loss(
        self, masks: Mapping[str, Tensor], windows: Sequence[int], *, text: int = 0, kind: str = DENSE_TO_PRUNED
    ) -> Tensor:  # fmt: skip
        """Walk forth, and back where a gradient is wanted."""
        if kind not in KINDS:
            raise ConfigError("kind", kind, " | ".join(KINDS))

        def walk(values: Sequence[Tensor], back: bool) -> tuple[Tensor, list[Tensor]]:
            return self._walk(dict(zip(masks, values, strict=True)), windows, text, kind, back)

        if torch.is_grad_enabled() and any(mask.requires_grad for mask in masks.values()):
            return _Loss.apply(walk, *masks.values())  # type: ignore[no-any-return]
        return walk(list(masks.values()), False)[0]

    def close(self) -> None:
        """Give back where hidden states wait."""
        for one in self._streams.values():
            for store in (one.stream.hidden, *one.last):
                self.shelf.discard(store)
        self._streams.clear()

    @torch.no_grad()
    def _walk(
        self, masks: Mapping[str, Tensor], windows: Sequence[int], text: int, kind: str, back: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the mean, and its gradient (count,) for each mask, where it is wanted."""
        scaled = [self._scaled(name, mask) for name, mask in masks.items()]
        blocks: list[list[_Scaled]] = [[] for _ in self.decoder.blocks]
        for name, one in zip(masks, scaled, strict=True):
            blocks[self.members[name][0]].append(one)
        opened = self._opened(text, with_last=kind != CROSS_ENTROPY)
        stream = opened.stream
        own = [row - stream.place.first for row in windows]
        own = torch.tensor([row for row in own if 0 <= row < len(stream.tokens)], dtype=torch.int64)
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in own.split(self.batch_size) if len(own) else ():
            values = self._batch(blocks, opened, rows, kind, back)
            sums[0] += float(values.double().sum(1).sum())
            sums[1] += values.numel()
        slopes = [one.slopes.cpu() for one in scaled] if back else []
        self.group.sum([sums, *slopes])
        found = []
        for (name, mask), slope in zip(masks.items(), slopes, strict=False):
            index = self.members[name][1][-1].index
            found.append((slope[index].sum(1) / sums[1]).to(mask.device, mask.dtype))
        return sums[0] / sums[1], found

    def _scaled(self, name: str, mask: Tensor) -> _Scaled:
        output = self.members[name][1][-1]
        linear = self.decoder.site(output.site).linear
        factors = torch.ones(linear.in_features, dtype=torch.float64)
        factors[output.index] = mask.detach().double().cpu()[:, None]
        slopes = torch.zeros(linear.in_features, dtype=torch.float64, device=self.decoder.device)
        return _Scaled(linear, factors.to(self.decoder.device, self.decoder.dtype), slopes)

    def _opened(self, text: int, *, with_last: bool) -> _Open:
        if text not in self._streams:
            tokens = self.texts.tokens[text]
            self._streams[text] = _Open(
                open_stream(self.decoder, tokens, self.batch_size, self.shelf, self.group)
            )
        opened = self._streams[text]
        if with_last and not opened.last:
            branch = fork(opened.stream, self.shelf)
            for index in range(len(self.decoder.blocks)):
                advance(self.decoder, index, branch)
            opened.last.append(branch.hidden)
        return opened

    def _batch(
        self, blocks: Sequence[list[_Scaled]], opened: _Open, rows: Tensor, kind: str, back: bool
    ) -> Tensor:
        """Return what the loss is the mean of, (b, positions); add the gradients of its sum to those of the factors."""
        stream = opened.stream
        tokens, hidden = stream.tokens[rows.to(stream.tokens.device)], stream.read(rows)
        first = next((index for index, scaled in enumerate(blocks) if scaled), len(blocks))
        entering: list[Activations] = []
        for index, scaled in enumerate(blocks):
            if back and index >= first:
                entering.append(self.shelf.build(*hidden.shape))
                entering[-1].write(slice(None), hidden)
            with _scaling(scaled):
                hidden = call_block(self.decoder, index, stream, hidden)
        if kind == CROSS_ENTROPY:
            with torch.enable_grad():
                leaf = hidden.detach().requires_grad_(back)
                values = token_losses(self.decoder, leaf, tokens)
                slope = torch.autograd.grad(values.sum(), leaf)[0] if back else hidden
        else:
            last = opened.last[0].read(rows, stream.like)
            reverse = kind == PRUNED_TO_DENSE
            values, slope = divergences(self.decoder, hidden, last, tokens, reverse=reverse)
        for index in reversed(range(first, len(blocks)) if back else ()):
            slope = self._back(index, stream, entering[-1], blocks[index], slope)
            self.shelf.discard(entering.pop())
        return values.detach()

    def _back(
        self, index: int, stream: Stream, entering: Activations, scaled: Sequence[_Scaled], slope: Tensor
    ) -> Tensor:
        """Return the gradient at a block's input from that at its output; add those of its factors."""
        leaf = entering.read(slice(None), stream.like).clone().requires_grad_()
        heard: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad(), _scaling(scaled, heard):
            result = call_block(self.decoder, index, stream, leaf)
        inputs = [heard[number] for number in range(len(scaled))]
        *at_inputs, below = torch.autograd.grad(result, [*(after for _, after in inputs), leaf], slope)
        length = stream.tokens.shape[1]
        for one, (before, _), at_input in zip(scaled, inputs, at_inputs, strict=True):
            products = (before.float() * at_input.float()).reshape(-1, length, before.shape[-1])
            one.slopes.add_(products.sum(1).double().sum(0))
        return below


class _Loss(torch.autograd.Function):
    """A walk whose backward is its gradients, scaled by what comes back."""

    @staticmethod
    def forward(ctx: Any, walk: Callable[..., tuple[Tensor, list[Tensor]]], *masks: Tensor) -> Tensor:
        value, slopes = walk(masks, True)
        ctx.save_for_backward(*slopes)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *(slope * grads[0].to(slope.device, slope.dtype) for slope in ctx.saved_tensors)


@contextmanager
def _scaling(
    scaled: Sequence[_Scaled], heard: dict[int, tuple[Tensor, Tensor]] | None = None
) -> Iterator[None]:
    """While open, what enters the output maps is multiplied by the factors; ``heard`` gets it, before and after, by place."""
    handles = []

    def listen(number: int, one: _Scaled) -> Callable[..., tuple[Tensor, ...]]:
        def hook(module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            after = args[0] * one.factors
            if heard is not None:
                heard[number] = args[0].detach(), after
            return after, *args[1:]

        return hook

    try:
        for number, one in enumerate(scaled):
            handles.append(one.linear.register_forward_pre_hook(listen(number, one)))
        yield
    finally:
        for handle in handles:
            handle.remove()
