"""Statistics of linear layers, from one walk forward and, if one of them reads gradients, one walk back.

Forward: the blocks run one by one, and what enters or leaves their layers is added up. Backward: the loss gives the
gradient at the last block's output; each block, last to first, is then run again on its input, which was kept, with
autograd. That yields the gradients at its layers' outputs and at its own input. Weights stay frozen, so autograd never
builds a weight's gradient (the code of arXiv:2312.17244 builds all of them); a statistic that reads them gets what
enters a layer together with the gradient at its output. Layers with one input share its statistics, and sequences go
through in batches.

Peak memory of a walk back: the inputs of all blocks (blocks x tokens x width), within the budget of the activation
store, + all statistics + the graph of one block on one batch + where weights' gradients are read, their sums and the
layers' inputs, of one block. A walk forward alone holds one block's statistics.
Gradients are of summed losses, so a token's do not shrink with the number of tokens; in float16 the smallest may
still underflow to zero, which reads as dead: prefer bfloat16 or float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from prunelab.distributed.group import ALONE, Group, sum_over
from prunelab.errors import ModelError
from prunelab.models.activation import Activations, Placement, Shelf, open_shelf
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.inputs import Enough, catch_inputs, catch_outputs, groups
from prunelab.models.memory import release_host_memory
from prunelab.models.stream import Stream, call_block, open_stream, token_losses, without_mlp
from prunelab.statistic import (
    BACKWARD,
    BLOCK,
    ENTERING,
    INPUT,
    OUTPUT,
    OUTPUT_GRADIENT,
    PARTS,
    WEIGHT_GRADIENT,
)
from prunelab.stats.base import (
    BlockRunning,
    Kept,
    Running,
    Statistic,
    Values,
    WeightRunning,
    WeightStatistic,
    load_statistic,
)

_Name = TypeVar("_Name")
Progress = Callable[[Mapping[str, Any]], None]
BlockValues = dict[str, Values]  # by layer name
HOLES = 8 * 2**20  # bytes that are worth the milliseconds of giving them back


@dataclass(frozen=True, eq=False)
class Needs:
    """The statistics that somebody asked for, by name; ``ones``: inputs get a last entry 1, the input of a bias."""

    statistics: Mapping[str, Kept]
    ones: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What was asked for, sorted."""
        return tuple(sorted(self.statistics))

    def reading(self, *what: str) -> dict[str, Kept]:
        """Those that read one of ``what``."""
        return {name: one for name, one in self.statistics.items() if one.reads in what}

    @property
    def backward(self) -> bool:
        """Whether a walk back is needed."""
        return bool(self.reading(*BACKWARD))

    @property
    def per_layer(self) -> bool:
        """Whether layers with one input have values of their own."""
        return any(one.reads not in ENTERING for one in self.statistics.values())


def load_needs(names: Collection[str], *, ones: bool = False) -> Needs:
    """Return the statistics called ``names``; ConfigError for one that does not exist."""
    return Needs({name: load_statistic(name) for name in sorted(names)}, ones)


@dataclass(frozen=True, eq=False)
class _Sum:
    """A running statistic of one layer, of the layers that share an input, or of all layers of a block."""

    need: str
    statistic: Kept
    sites: tuple[LinearSite, ...]
    running: Running | BlockRunning | WeightRunning
    joined: bool  # with the input of a bias

    def values(self) -> Iterator[tuple[str, Any]]:
        """Yield every layer with its value, which layers with one input share; uses up the sum."""
        value = self.running.finish()
        for site in self.sites:
            if self.joined and site.linear.bias is None:  # another layer of the group has one
                kept = torch.arange(site.linear.in_features + 1) < site.linear.in_features
                yield site.name, self.statistic.restrict(value, kept.to(site.linear.weight.device))
            else:
                yield site.name, value


@torch.no_grad()
def collect_block(
    decoder: Decoder, index: int, stream: Stream, needs: Needs, *, advancing: bool
) -> BlockValues:
    """Return the statistics of block ``index`` on ``stream`` by layer, with the weights in place.

    ``advancing`` moves the stream through the block; without it the stream stays, and what follows the last layer's
    input is not computed unless a statistic reads it. Layers of a block share the value of what reads the block. Sums
    are over the streams of all ranks.
    """
    members = groups(decoder, index)
    inputs = [_sums(needs.reading(INPUT), sites, needs.ones, stream) for sites in members]
    sites = decoder.sites(index)
    outputs = [_sums(needs.reading(OUTPUT), (site,), False, stream) for site in sites]
    whole = _sums(needs.reading(BLOCK), sites, False, stream)
    between = _sums(needs.reading(PARTS), sites, False, stream)
    if between:  # before anybody listens to the layers: it runs the block twice more
        for rows in stream.batches():
            entering = stream.read(rows)
            middle = without_mlp(decoder, index, stream, entering)
            _adding(between, stream)(entering, middle, call_block(decoder, index, stream, entering))
    early = not advancing and not any(outputs) and not whole
    with (
        catch_inputs(members, [_adding(sums, stream) for sums in inputs], stop=early),
        catch_outputs(sites, [_adding(sums, stream) for sums in outputs]),
    ):
        for rows in stream.batches():
            with suppress(Enough):
                entering = stream.read(rows)
                leaving = call_block(decoder, index, stream, entering)
                _adding(whole, stream)(entering, leaving)
                if advancing:
                    stream.write(rows, leaving)
    return _finished([one for sums in (*inputs, *outputs, whole, between) for one in sums], stream)


def collect_model(
    decoder: Decoder, stream: Stream, needs: Needs, shelf: Shelf, progress: Progress | None = None
) -> BlockValues:
    """Return the statistics of every layer on ``stream``, which is used up; block inputs wait in ``shelf``.

    ``progress`` gets one mapping per block and direction. Raises ModelError naming the block where an activation or
    a gradient is not finite.
    """
    say = progress or (lambda row: None)
    values: BlockValues = {}
    entering: list[Activations] = []
    n_blocks = len(decoder.blocks)
    for index in range(n_blocks):
        if needs.backward:
            entering.append(_kept(stream, shelf))
        values |= collect_block(decoder, index, stream, needs, advancing=True)
        _check(stream, f"activations after block {index} of {decoder.name}")
        say({"event": "progress", "phase": "forward", "done": index + 1, "total": n_blocks})
    if not needs.backward:
        return values
    _start_back(decoder, stream)
    for index in reversed(range(n_blocks)):
        _check(stream, f"gradients at the output of block {index} of {decoder.name}")
        for name, more in _walk_back(decoder, index, stream, entering[-1], needs).items():
            values[name] = {**values.get(name, {}), **more}
        shelf.discard(entering.pop())
        say({"event": "progress", "phase": "backward", "done": n_blocks - index, "total": n_blocks})
    return values


def collect_all(
    decoder: Decoder, tokens: Tensor, needs: Collection[str], batch_size: int, *, ones: bool = False,
    placement: Placement | None = None, progress: Progress | None = None, group: Group = ALONE,
) -> BlockValues:  # fmt: skip
    """Return the statistics called ``needs`` of every layer on ``tokens`` (n, seq_len) int64, by layer name.

    ``ones``: inputs get a last entry 1 where there is a bias. ``placement``: where hidden states wait; None = on the
    model's device. Of several ranks in ``group`` each walks its share, and all get the values of the whole.
    """
    wanted = load_needs(needs, ones=ones)
    with open_shelf(placement or Placement("device"), decoder.dtype, decoder.device) as shelf:
        stream = open_stream(decoder, tokens, batch_size, shelf, group)
        return collect_model(decoder, stream, wanted, shelf, progress)


def _sums(
    statistics: Mapping[str, Kept], sites: tuple[LinearSite, ...], ones: bool, stream: Stream
) -> list[_Sum]:
    """Start a sum per statistic for layers that are looked at together, over the stream's sequences."""
    linear = sites[0].linear
    joined = ones and any(site.linear.bias is not None for site in sites)
    sums = []
    for need, statistic in statistics.items():
        width = linear.in_features if statistic.reads in ENTERING else linear.out_features
        running = cast(Statistic, statistic).start(
            sites[0].name, width, ones=joined, device=linear.weight.device
        )
        if (tell := getattr(running, "place", None)) is not None:
            tell(stream.place)
        sums.append(_Sum(need, statistic, sites, running, joined))
    return sums


def _weight_sums(statistics: Mapping[str, Kept], site: LinearSite) -> list[_Sum]:
    """Start a sum per statistic of the gradient of a layer's weight."""
    weight, bias = site.linear.weight, site.linear.bias
    return [
        _Sum(need, statistic, (site,), cast(WeightStatistic, statistic).start(site.name, weight, bias), False)
        for need, statistic in statistics.items()
    ]


def _adding(sums: Collection[_Sum], stream: Stream) -> Callable[..., None]:
    """Return what feeds sums with tokens, or with inputs and the gradients at outputs side by side."""
    length = stream.tokens.shape[1]

    @torch.no_grad()
    def add(*read: Tensor) -> None:
        # some families hand their layers the tokens of a whole batch in one row: sums go sequence by sequence
        sequences = [x.detach().reshape(-1, length, x.shape[-1]) for x in read]
        for one in sums:
            one.running.add(*sequences)

    return add


def _finished(sums: list[_Sum], stream: Stream) -> BlockValues:
    """Add the sums over all ranks and return their values by layer; layers with one input share the object."""
    sum_over(stream.group, [one.running for one in sums])
    held = sum(one.running.total.nbytes for one in sums)
    values: dict[str, dict[str, Any]] = {}
    for one in sums:
        for name, value in one.values():
            values.setdefault(name, {})[one.need] = value
    if held > HOLES:  # the sums are gone, and what they leave fits nothing of the next block's
        release_host_memory()
    return dict(values)


def _kept(stream: Stream, shelf: Shelf) -> Activations:
    """Copy the stream's states into the shelf."""
    store = shelf.build(*stream.hidden.shape)
    for rows in stream.batches():
        store.write(rows, stream.read(rows))
    return store


@torch.enable_grad()
def _start_back(decoder: Decoder, stream: Stream) -> None:
    """Put the gradients of the summed token losses at the last block's output in the place of that output."""
    for rows in stream.batches():
        leaf = stream.read(rows).detach().requires_grad_()
        losses = token_losses(decoder, leaf, stream.tokens[rows])
        stream.write(rows, torch.autograd.grad(losses.sum(), leaf)[0])


@torch.enable_grad()
def _walk_back(
    decoder: Decoder, index: int, stream: Stream, entering: Activations, needs: Needs
) -> BlockValues:
    """Return what reads gradients in block ``index``; the stream's gradients become those at its input."""
    members = groups(decoder, index)
    sites = [site for group in members for site in group]
    tokens = [_sums(needs.reading(OUTPUT_GRADIENT), (site,), False, stream) for site in sites]
    weights = [_weight_sums(needs.reading(WEIGHT_GRADIENT), site) for site in sites]
    for rows in stream.batches():
        slope = stream.read(rows)
        # a copy: the graph must not see the store's memory change under it
        leaf = entering.read(rows, stream.like).clone().requires_grad_()
        inputs: dict[int, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        heard = members if any(weights) else []
        with (
            catch_inputs(heard, [_keeping(inputs, group[0].shared) for group in heard]),
            catch_outputs(sites, [_keeping(outputs, site.name) for site in sites]),
        ):
            result = call_block(decoder, index, stream, leaf)
        wanted = [outputs[site.name] for site in sites]
        slopes = torch.autograd.grad(result, [*wanted, leaf] if index else wanted, slope, allow_unused=True)
        for site, output, at_output, of_tokens, of_weight in zip(
            sites, wanted, slopes, tokens, weights, strict=False
        ):
            at_output = torch.zeros_like(output) if at_output is None else at_output
            _adding(of_tokens, stream)(at_output)
            if of_weight:
                _adding(of_weight, stream)(inputs[site.shared], at_output)
        if index:
            stream.write(rows, slopes[-1])
    return _finished([one for own in (*tokens, *weights) for one in own], stream)


def _keeping(kept: dict[_Name, Tensor], name: _Name) -> Callable[[Tensor], None]:
    return lambda tensor: kept.update({name: tensor})


def _check(stream: Stream, what: str) -> None:
    if not all(bool(torch.isfinite(stream.read(rows)).all()) for rows in stream.batches()):
        raise ModelError(
            f"{what} are not finite. Check the checkpoint and the calibration text, "
            "or use model.dtype=float32."
        )


def blocks_of(decoder: Decoder) -> Iterator[tuple[int, bool]]:
    """Every block's index, and whether another one follows."""
    last = len(decoder.blocks) - 1
    return ((index, index < last) for index in range(last + 1))
