"""Repairing a pruned model block by block with one model in memory (arXiv:2406.15524, section 2).

Two streams of hidden states walk beside each other, the dense model's and the repaired one's. A block's dense
weights stay at hand while a unit that contains it is at work, at most ``window`` blocks of them; then they are
freed. With windows of k blocks and stride s, units start at block ``-(k - s)``, so that the first and the last
blocks take part in as many units as the others; blocks outside the model are left out. For k = 2, s = 1 these
are the B + 1 rounds of the paper's cross-block reconstruction, each block trained in two of them. Masks are those
of a state, or chosen when a block first enters a unit (:mod:`prunelab.passes.between`), and never chosen again.

Two roles of text come in here: ``tokens`` (targets and training) and ``stopping`` (decides when training ends, if the
spec asks for it). The tokens that masks are chosen on are the pruner's own. Held-out text is measured by
:mod:`prunelab.evaluation.walk`, in a stage of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.errors import ConfigError, ModelError
from prunelab.models.activation import Placement, Shelf, open_shelf
from prunelab.models.bias import add, may_add
from prunelab.models.block import LinearSite
from prunelab.models.compare import relative_error, squares
from prunelab.models.decoder import Decoder
from prunelab.models.memory import release_host_memory
from prunelab.models.stream import advance
from prunelab.reconstruction.base import Held, Layer, Members, Other, Reconstruction, Unit, holding
from prunelab.reconstruction.pruned import Chosen, Pruned, Pruning, Stored
from prunelab.reconstruction.streams import Streams, open_streams
from prunelab.sparsity.mask import Mask
from prunelab.stats.view import site_generator
from prunelab.structures.state import SiteState, State, StateReader, read_state

Progress = Callable[[Mapping[str, Any]], None]


_STOPPING = 8  # one sequence in eight decides when training ends, where a repair asks for that


def split_stopping(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sequences to train on and the last eighth, at least one, that decides when training ends."""
    held_back = max(1, len(tokens) // _STOPPING)
    return tokens[:-held_back], tokens[-held_back:]


@dataclass(frozen=True)
class RepairReport:
    """What one step of the walk did. ``done``: blocks finished so far, the ``start_block`` to resume with.

    ``blocks``: one row per newly finished block, {block, error_before, error, mse_before, mse}, on ``tokens``.
    error: squared Frobenius norm of dense - repaired block output over that of the dense one; mse: the same
    difference per element (arXiv:2406.15524); before: the same with the block as pruned, after repaired blocks.
    ``fit``: what the repair says of its work.
    """

    done: int
    blocks: list[dict[str, Any]]
    fit: dict[str, float]


@torch.no_grad()
def reconstruct(
    decoder: Decoder,
    pruned: StateReader | Pruning,
    tokens: Tensor,
    spec: Reconstruction,
    *,
    seed: int,
    batch_size: int,
    stopping: Tensor | None = None,
    placement: Placement | None = None,
    start: StateReader | None = None,
    start_block: int = 0,
    on_block: Callable[[RepairReport, State], None] | None = None,
    progress: Progress | None = None,
) -> State:
    """Repair ``pruned`` on ``tokens`` (n, seq_len) int64 and return the new state.

    ``pruned``: a state, whose masks stay, or how every block shall be pruned once those before it are repaired.

    ``decoder`` is dense on entry and the repaired model on return; parameters outside its blocks are never touched.
    ``batch_size``: sequences per forward of the walk; training has its own. ``on_block(report, part)``:
    ``part`` holds every layer, and trained parameter, that the step changed or finished; parts laid over each other are the
    ``start`` from which, with ``start_block = report.done``, the rest gives the same bits. Save or clone
    before returning. Raises ConfigError for what does not fit together, ModelError where training diverges.
    """
    _check(decoder, spec, stopping, start, start_block)
    with open_shelf(placement or Placement(), decoder.dtype, decoder.device) as shelf:
        source = (
            Chosen(decoder, pruned.open(decoder, shelf)) if isinstance(pruned, Pruning) else Stored(pruned)
        )
        walk = _Walk(
            decoder=decoder,
            pruned=source,
            spec=spec,
            seed=seed,
            shelf=shelf,
            calibration=open_streams(decoder, tokens, batch_size, shelf),
            stopping=None if stopping is None else open_streams(decoder, stopping, batch_size, shelf),
            members={},
            masks={},
            trained={},
            progress=progress,
        )
        n_blocks = len(decoder.blocks)
        for first in range(spec.stride - spec.window, n_blocks, spec.stride):
            window = range(max(first, 0), min(first + spec.window, n_blocks))
            finished = range(max(first, 0), min(first + spec.stride, n_blocks))
            past = 0 < min(first + spec.stride, n_blocks) <= start_block
            past |= start_block > 0 and not finished  # a round at the edge, before the first block is done
            walk.enter(window, start if start_block else None)
            fit = {} if past else walk.repair(window)
            rows = walk.leave(finished, tell=on_block is not None and not past)
            if finished and not past and on_block is not None:
                part = walk.part(window, finished)
                on_block(RepairReport(finished[-1] + 1, rows, fit), part)
            for index in finished:
                walk.release(index)
    return read_state(decoder, walk.masks, walk.trained)


@dataclass(eq=False)
class _Walk:
    """The streams; ``members`` of blocks whose dense weights are still at hand; the masks met so far; the names of
    parameters outside linear layers that are not dense any more, in order."""

    decoder: Decoder
    pruned: Pruned
    spec: Reconstruction
    seed: int
    shelf: Shelf
    calibration: Streams
    stopping: Streams | None
    members: dict[int, Members]
    masks: dict[str, Mask]
    trained: dict[str, None]
    progress: Progress | None

    def enter(self, window: range, start: StateReader | None) -> None:
        """Keep the dense weights of blocks new in ``window`` and put the pruned ones in place."""
        for index in window:
            if index not in self.members:
                self.pruned.enter(index, start)
                layers = [self._layer(site, start) for site in self.decoder.sites(index)]
                others = [self._other(*item, start) for item in self.decoder.other_parameters(index).items()]
                self.members[index] = Members(tuple(layers), tuple(others))

    def _layer(self, site: LinearSite, start: StateReader | None) -> Layer:
        """Put a layer's weights in place: what an earlier attempt made of it, else as it was pruned."""
        linear, pruned = site.linear, self.pruned.site(site.name)
        self.masks[site.name] = pruned.mask
        if pruned.bias is not None and linear.bias is None and may_add(self.decoder.family, site.path):
            add(linear)  # zeros, with which the dense layer computes the same
        layer = Layer(
            site, pruned.mask, linear.weight.data, None if linear.bias is None else linear.bias.data
        )
        if start is not None and site.name in start.names:
            pruned = start.site(site.name)
        _check_fits(layer, pruned, self.pruned.model)
        new = pruned.weight.to(linear.weight, copy=True), _copy(pruned.bias, linear.weight)
        for parameter, value in layer.hold(*new):
            parameter.data = value
        return layer

    def _other(self, name: str, parameter: nn.Parameter, start: StateReader | None) -> Other:
        """Put the other parameter in place, in memory of its own: the dense one stays as it is."""
        other = Other(name, parameter, parameter.data)
        resumed = start is not None and name in start.parameter_names
        stored = start.parameter(name) if start is not None and resumed else self.pruned.parameter(name)
        value = other.dense if stored is None else stored
        parameter.data = value.to(other.dense, copy=True)
        return other

    def repair(self, window: range) -> dict[str, float]:
        if not any(mask.removed for mask in self.masks.values()):
            return {}  # rounding alone must not move the weights of a dense model
        unit = Unit(
            decoder=self.decoder,
            blocks=window,
            members=tuple(self.members[index] for index in window),
            calibration=self.calibration,
            stopping=self.stopping,
            generator=site_generator(self.seed, f"blocks {window[0]} to {window[-1]}", 1),
            shelf=self.shelf,
        )
        return self.spec.repair(unit, self._say(window[0]))

    def leave(self, finished: range, *, tell: bool) -> list[dict[str, Any]]:
        """Move the streams through the finished blocks; return the report's rows if asked to ``tell``."""
        rows = []
        release_host_memory()
        for index in finished:
            both = [s for s in (self.calibration, self.stopping) if s is not None]
            with holding(self.members[index].dense()):
                for streams in both:
                    advance(self.decoder, index, streams.dense)
            before = self._error_before(index) if tell else 0.0
            for streams in both:
                advance(self.decoder, index, streams.pruned)
            self.pruned.leave(index)
            if tell:
                rows.append({"block": index} | _measure(self.calibration, before))
        return rows

    def _error_before(self, index: int) -> float:
        """Squared error that block ``index`` would have as it was pruned; the dense stream is past it already."""
        streams = self.calibration
        with holding(self._as_pruned(self.members[index])):
            run = partial(streams.run, range(index, index + 1))
            return squares(streams.pruned, streams.dense.hidden, run)[0]

    def _as_pruned(self, members: Members) -> list[Held]:
        """The block's parameters with the values that pruning left."""
        pairs: list[Held] = []
        for layer in members.layers:
            stored, like = self.pruned.site(layer.site.name), layer.weight
            pairs += layer.hold(stored.weight.to(like), _copy(stored.bias, like))
        for other in members.others:
            stored = self.pruned.parameter(other.name)
            pairs.append((other.parameter, other.dense if stored is None else stored.to(other.dense)))
        return pairs

    def release(self, index: int) -> None:
        """Let the dense weights of a finished block go."""
        self.trained |= self._trained(self.members.pop(index))

    def _trained(self, members: Members) -> dict[str, None]:
        return {other.name: None for other in members.others if not other.is_dense}

    def part(self, window: range, finished: range) -> State:
        """What a later attempt needs of the blocks in ``window``, of which some are ``finished``."""
        items: dict[str, SiteState] = {}
        parameters: dict[str, Tensor] = {}
        for members in (self.members[index] for index in window):
            for layer in members.layers:
                bias = None if layer.linear.bias is None else layer.linear.bias.detach()
                items[layer.site.name] = SiteState(layer.linear.weight.detach(), bias, layer.mask)
            for name in self._trained(members):
                parameters[name] = self.decoder.model.get_parameter(name).detach()
        items |= self.pruned.kept(index for index in window if index not in finished)
        return State(self.pruned.model, items, parameters)

    def _say(self, block: int) -> Progress:
        progress = self.progress
        if progress is None:
            return lambda row: None
        total = len(self.decoder.blocks)
        return lambda row: progress({**row, "block": block, "blocks": total})


def _measure(streams: Streams, before: float) -> dict[str, float]:
    """Errors against the dense stream after a block that both have passed; ``before``: as it was pruned."""
    after, norm = squares(streams.pruned, streams.dense.hidden)
    count = math.prod(streams.shape)
    return {
        "error_before": relative_error(before, norm),
        "error": relative_error(after, norm),
        "mse_before": before / count,
        "mse": after / count,
    }


def _copy(bias: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(like, copy=True)


def _check(
    decoder: Decoder,
    spec: Reconstruction,
    stopping: Tensor | None,
    start: StateReader | None,
    start_block: int,
) -> None:
    if not 1 <= spec.stride <= spec.window:
        raise ConfigError("reconstruction.stride", spec.stride, f"1 to {spec.window}, the window")
    if spec.early_stop and stopping is None:
        raise ConfigError("stopping", None, "tokens of their own", "Or set reconstruction.patience=null.")
    if not spec.early_stop and stopping is not None:
        raise ConfigError("stopping", "tokens", "None unless reconstruction.patience is set")
    if start_block and start is None:
        raise ConfigError("start", None, f"the parts of blocks 0 to {start_block - 1}", "Or start_block=0.")
    n_blocks = len(decoder.blocks)
    firsts = range(spec.stride - spec.window, n_blocks, spec.stride)
    steps = {min(first + spec.stride, n_blocks) for first in firsts}
    if start_block not in steps | {0}:
        raise ConfigError("start_block", start_block, f"one of {sorted(steps | {0})}, where a step ended")


def _check_fits(layer: Layer, pruned: SiteState, model: str) -> None:
    same_bias = (layer.bias is None) == (pruned.bias is None)
    if (
        layer.weight.shape != pruned.weight.shape
        or layer.weight.dtype != pruned.weight.dtype
        or not same_bias
    ):
        raise ModelError(
            f"{layer.site.name} is {tuple(layer.weight.shape)} {layer.weight.dtype}, in the state of {model} "
            f"{tuple(pruned.weight.shape)} {pruned.weight.dtype}; load the model it was pruned from."
        )
