"""Pruning a decoder in place: one loop over shots for every pattern.

A shot prunes to the next target of a schedule. Block by block (arXiv:2406.15524, section 2): one forward with a
block's weights as they are gives the statistics of its layers, the method decides, a second forward, with the pruned
weights, gives the next block's input (``propagation="pruned"``, as the papers do). With ``propagation="dense"``
statistics are those of the model as the shot found it: one forward per block does, and none if they were collected
before. The whole model at once (arXiv:2312.17244): statistics of all layers, prices of all structures, one threshold,
then updates layer by layer. Between two shots the model may be corrected (``correct``): a shot then begins with the
correction of what the one before has left, so that a shot's state is the same whether another follows it or not.

What finishes is told step by step: a shot of the whole model, or a block. A step's state is what resumes from there,
with the same bits as one go. Norms, embeddings and the head are never pruned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor

from prunelab.allocation.base import Allocation
from prunelab.distributed.group import ALONE, Group
from prunelab.errors import ConfigError
from prunelab.models.activation import Placement, Shelf, open_shelf
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.memory import release_host_memory
from prunelab.models.stream import open_stream
from prunelab.passes.arguments import Spread, check_run
from prunelab.passes.chooser import Choice, Chooser, Generators, Part, Pruned, Tables, Weighing, joined
from prunelab.passes.choosers import chooser_of
from prunelab.passes.collect import (
    BlockValues,
    Needs,
    Progress,
    blocks_of,
    load_needs,
)
from prunelab.passes.compared import compared
from prunelab.passes.elements import states
from prunelab.passes.judge import Texts, WholeModel, asks, texts_of
from prunelab.passes.pseudo import divided
from prunelab.passes.source import Given, Live, Source, Stored
from prunelab.passes.spread import block_ratios
from prunelab.passes.step import OnStep, StepReport, site_row, state_of
from prunelab.pattern.base import UNIFORM, UPDATE, Pattern, Propagation
from prunelab.sparsity.mask import Mask
from prunelab.stats.view import site_generator
from prunelab.structures.state import SiteState, State, StateReader, apply_state, read_state

# repairs the pruned model in place before a shot: masks, tokens, number of the shot, who listens; returns its numbers
Correct = Callable[[Mapping[str, Mask], Tensor, int, Progress], Mapping[str, Any]]


@torch.no_grad()
def prune(
    decoder: Decoder,
    method: Any,
    tokens: Tensor | None,
    schedule: Sequence[float],
    *,
    pattern: Pattern,
    seed: int,
    batch_size: int,
    allocation: Spread | None = None,
    propagation: Propagation = "pruned",
    stored: Stored | None = None,
    placement: Placement | None = None,
    start: StateReader | None = None,
    start_step: int = 0,
    on_step: OnStep | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
    domains: Sequence[Tensor] = (),
    correct: Correct | None = None,
) -> State:
    """Prune ``decoder``, dense on entry, in place along ``schedule`` and return its state (it shares the memory).

    ``tokens`` (n, seq_len) int64: calibration; None will do where nothing is needed. ``schedule``: cumulative
    removed fractions, growing, one per shot; none at all leaves the model dense. ``allocation``: None = the
    pattern's own. ``stored``: statistics of the dense model, instead of tokens where ``propagation="dense"``; the
    bits are the same. ``placement``: where hidden states wait; None = on the model's device.
    ``on_step(report, state)``: ``state`` holds all layers after a shot of the whole model, the block's after a
    block; save or clone it before returning. ``start`` and ``start_step``: what the first ``start_step`` steps left
    (block by block: their parts laid over each other); the rest gives the same bits as one go. Of several ranks in
    ``group`` each walks its share of the tokens and all decide the same. ``domains``: token sets of other text, for a
    method that compares them. ``correct(masks, tokens, shot, say)`` repairs the model in place before every shot but the
    first, removed weights stay zero; its numbers are the table ``between_shots``. Raises ConfigError for what does not fit
    together, ModelError for activations that are not finite.
    """
    allocation = pattern.default_allocation if allocation is None else allocation
    check_run(decoder, method, pattern, schedule, allocation, propagation, tokens, stored, domains)
    chooser = chooser_of(pattern, decoder)
    whole = asks(method) or chooser.is_whole(method, allocation, len(schedule))
    if correct is not None and tokens is None:
        raise ConfigError("tokens", None, "tokens (n, seq_len) to correct the model on between shots")
    steps = len(schedule) if whole else len(decoder.blocks)
    if not 0 <= start_step <= steps:
        raise ConfigError("start_step", start_step, f"0 to {steps}, the number of steps")
    if start_step and start is None:
        raise ConfigError("start", None, f"the state after step {start_step}", "Or start_step=0.")
    with open_shelf(placement or Placement("device"), decoder.dtype, decoder.device) as shelf:
        domains = divided(decoder, method, tokens, domains, batch_size, shelf)
        texts = texts_of(method, tokens, domains)
        if texts is not None:
            tokens, *domains = texts.seen
        walk = Walk(
            decoder,
            method,
            chooser,
            seed,
            batch_size,
            shelf,
            group,
            progress,
            on_step,
            pattern.needs,
            domains,
            texts,
            correct,
        )
        if whole:
            return walk.whole(tokens, schedule, cast(str, allocation), stored, start, start_step)
        return walk.by_blocks(tokens, schedule, allocation, propagation, stored, start, start_step)


@torch.no_grad()
def prune_ratios(
    decoder: Decoder, method: Any, tokens: Tensor | None, *, pattern: Pattern, ratios: Sequence[float], seed: int,
    batch_size: int, progress: Progress | None = None,
) -> list[State]:  # fmt: skip
    """Return one state per ratio from one pass on the dense stream; ``decoder`` stays dense.

    The same bits as ``prune(..., propagation="dense")`` for each ratio. Statistics and, for SparseGPT, the inverse
    Hessian are shared; weights are held once per ratio.
    """
    for ratio in ratios:
        check_run(decoder, method, pattern, [ratio], UNIFORM, "dense", tokens, None)
    chooser = chooser_of(pattern, decoder)
    if chooser.is_whole(method, UNIFORM, 1):
        hint = f"What method={method.name} removes is chosen over all layers."
        raise ConfigError("ratios", list(ratios), f"one at a time, by prune, with {pattern.label}", hint)
    with open_shelf(Placement("device"), decoder.dtype, decoder.device) as shelf:
        walk = Walk(decoder, method, chooser, seed, batch_size, shelf, ALONE, progress, None)
        source = walk.source(tokens, None, walk.needs)
        items: list[dict[str, SiteState]] = [{} for _ in ratios]
        for index, more in blocks_of(decoder):
            for part in walk.parts(index, source, {}, 1, advancing=more):
                for decision, layers in zip(walk.chooser.decide(method, part, ratios), items, strict=True):
                    layers |= states(part, *decision)
            walk.say("prune", index + 1, len(decoder.blocks))
    return [State(decoder.name, layers) for layers in items]


@dataclass(eq=False)
class Walk:
    """One pruning at work: the model, who decides, where hidden states wait, and who listens."""

    decoder: Decoder
    method: Any
    chooser: Chooser
    seed: int
    batch_size: int
    shelf: Shelf
    group: Group
    progress: Progress | None
    on_step: OnStep | None
    also: tuple[str, ...] = ()
    domains: Sequence[Tensor] = ()
    texts: Texts | None = None  # of a method that asks the whole model
    correct: Correct | None = None

    @cached_property
    def needs(self) -> Needs:
        """The statistics that the method asks for, and ``also`` its pattern."""
        ones = self.chooser.joins_bias or hasattr(self.method, UPDATE)
        return load_needs({*self.method.needs, *self.also}, ones=ones)

    def source(self, tokens: Tensor | None, stored: Stored | None, needs: Needs) -> Source:
        """Return where statistics come from: what is stored, a stream of the tokens, or nothing."""
        main = (
            Given(stored)
            if stored is not None or not needs.statistics
            else self._live(cast(Tensor, tokens), needs)
        )
        if not self.domains:
            return main
        return compared(
            main, [cast(Tensor, tokens), *self.domains], needs, lambda text: self._live(text, needs)
        )

    def _live(self, tokens: Tensor, needs: Needs) -> Live:
        return Live(open_stream(self.decoder, tokens, self.batch_size, self.shelf, self.group), needs)

    def parts(
        self, index: int, source: Source, masks: Mapping[str, Mask], shot: int, *, advancing: bool
    ) -> Iterator[Part]:
        """Yield the parts of block ``index``; all statistics are there before the first one comes."""
        values = source.block(self.decoder, index, advancing=advancing) if self.needs.statistics else {}
        yield from self._parts(self.decoder.sites(index), masks, values, shot)

    def _parts(
        self, sites: Sequence[LinearSite], masks: Mapping[str, Mask], values: BlockValues, shot: int
    ) -> Iterator[Part]:
        yield from self.chooser.parts(sites, masks, values, self.needs, self._generators(shot))

    # The whole model at once

    def whole(
        self, tokens: Tensor | None, schedule: Sequence[float], allocation: str, stored: Stored | None,
        start: StateReader | None, start_step: int,
    ) -> State:  # fmt: skip
        """Prune shot by shot, each with one choice over all layers; a step is a shot."""
        masks = self._start(start)
        for number, target in enumerate(schedule[start_step:], start_step + 1):
            began = time.perf_counter()
            with self._in_shot(number, len(schedule)):
                told = self._corrected(masks, tokens, number)
                source = self._look(tokens, stored)
                masks, choice = self.shoot(source, masks, target, number, allocation)
            choice = replace(choice, tables=joined([told, choice.tables]))
            weights = (site.linear.weight for site in self.decoder.sites())
            self.group.confirm(weights, f"after shot {number}")
            rows = [site_row(site, masks[site.name]) for site in self.decoder.sites()]
            state = partial(read_state, self.decoder, masks)
            self._tell(number, None, target, choice, rows, began, state)
        return read_state(self.decoder, masks)

    def _corrected(self, masks: Mapping[str, Mask], tokens: Tensor | None, number: int) -> Tables:
        """Correct what the shot before ``number`` has left, if there was one and somebody asks for it; return what is told."""
        if self.correct is None or number == 1:
            return {}
        numbers = self.correct(masks, cast(Tensor, tokens), number, self.progress or (lambda row: None))
        weights = (site.linear.weight for site in self.decoder.sites())
        self.group.confirm(weights, f"corrected before shot {number}")
        return {"between_shots": [dict(numbers)]}

    def _look(self, tokens: Tensor | None, stored: Stored | None) -> Source:
        """Return the statistics of the model as it is, in memory where updates or gradients ask for that."""
        source = self.source(tokens, stored, self.needs)
        twice = self.chooser.looks_twice or hasattr(self.method, UPDATE)
        if not (twice or self.needs.backward):
            return source
        return source.hold(self.decoder, self.shelf, self.progress)

    def shoot(
        self, source: Source, masks: Mapping[str, Mask], target: float, shot: int, allocation: str
    ) -> tuple[dict[str, Mask], Choice]:
        """Prune the model in place to a removed fraction ``target`` of all its weights; return masks and what was chosen.

        Held statistics are let go layer by layer, so that memory falls while updates run.
        """
        blocks, prices = len(self.decoder.blocks), dict[str, Any]()
        for index, more in blocks_of(self.decoder):
            for part in self.parts(index, source, masks, shot, advancing=more):
                prices |= self.chooser.price(self.method, part, masks)
                release_host_memory()
            self.say("costs", index + 1, blocks)
        told: Tables = {}
        if self.texts is not None:
            judging = partial(
                WholeModel, self.decoder, self.texts, self.batch_size, self.shelf, self.group, self.seed, shot, self.say
            )  # fmt: skip
            weighing = cast(Weighing, self.chooser)
            prices, told = weighing.weigh(self.method, prices, target, allocation, judging)
        choice = self.chooser.choose(prices, target, allocation)
        choice = replace(choice, tables=joined([told, choice.tables]))
        pruned: dict[str, Mask] = {}
        for index in range(blocks):
            for site in self.decoder.sites(index):
                values = {site.name: source.release(site.name)}
                part = partial(self._part, site, masks, values, shot)
                decision = choice.layers.get(site.name)
                pruned[site.name] = self.chooser.take(self.method, site, decision, part, masks[site.name])
                del values
                release_host_memory()
            self.say("update", index + 1, blocks)
        return pruned, choice

    def _part(self, site: LinearSite, masks: Mapping[str, Mask], values: BlockValues, shot: int) -> Part:
        return self.chooser.one(site, masks, values, self.needs, self._generators(shot))

    def _generators(self, shot: int) -> Generators:
        return lambda name: site_generator(self.seed, name, shot)

    def _start(self, start: StateReader | None) -> dict[str, Mask]:
        """Put the start state, if any, into the decoder; return the masks to begin with."""
        if start is None:
            return {site.name: self.chooser.start(site) for site in self.decoder.sites()}
        return self._put(start)

    def _put(self, state: StateReader, block: int | None = None) -> dict[str, Mask]:
        """Put what an earlier attempt made of the model, or of one block, in place; return its masks."""
        apply_state(self.decoder, state, block)
        masks = {site.name: state.site(site.name).mask for site in self.decoder.sites(block)}
        for name, mask in masks.items():
            if mask.kind != self.chooser.kind:
                raise ConfigError("start", mask.kind, f"a state with masks of {self.chooser.kind}", name)
        return masks

    # Block by block

    def by_blocks(
        self, tokens: Tensor | None, schedule: Sequence[float], allocation: Spread, propagation: str,
        stored: Stored | None, start: StateReader | None, start_step: int,
    ) -> State:  # fmt: skip
        """Prune every block on its own; a step is a block."""
        (ratio,) = schedule or (0.0,)
        source, ratios = self.begin(tokens, stored, allocation, ratio)
        masks: dict[str, Mask] = {}
        for index, more in blocks_of(self.decoder):
            began, pruned = time.perf_counter(), None
            moves = more and bool(self.needs.statistics)
            if index < start_step:
                if moves and propagation == "dense":
                    source.advance(self.decoder, index)
                masks |= self._put(cast(StateReader, start), index)
            else:
                pruned = self.prune_block(
                    index, source, ratios[index], advancing=moves and propagation == "dense"
                )
                masks |= pruned.masks
                weights = (site.linear.weight for site in self.decoder.sites(index))
                self.group.confirm(weights, f"after block {index}")
            if moves and propagation == "pruned":
                source.advance(self.decoder, index)
            if pruned is not None:
                self.tell_block(index, ratios[index], pruned, began)
        return read_state(self.decoder, masks)

    def begin(
        self, tokens: Tensor | None, stored: Stored | None, allocation: Spread, ratio: float
    ) -> tuple[Source, list[float]]:
        """Return where a walk block by block takes its statistics, and every block's ratio; the model is dense."""
        needs = self.needs
        spread = None if isinstance(allocation, str) else load_needs(("input_norm",))
        source = self.source(tokens, stored, needs if needs.statistics or spread is None else spread)
        if needs.backward:
            source = source.hold(self.decoder, self.shelf, self.progress)
        if spread is None:
            return source, [ratio] * len(self.decoder.blocks)
        ratios = block_ratios(
            self.decoder, cast(Allocation, allocation), ratio, source, spread, self.shelf, self.say
        )
        return source, ratios

    def prune_block(self, index: int, source: Source, ratio: float, *, advancing: bool) -> Pruned:
        """Prune block ``index`` in place; return its masks. Its statistics are gone when this returns."""
        masks, tables = dict[str, Mask](), list[Tables]()
        for part in self.parts(index, source, masks, 1, advancing=advancing):
            pruned = self.chooser.prune(self.method, part, ratio)
            masks |= pruned.masks
            tables.append(pruned.tables)
        for site in self.decoder.sites(index):
            if site.name not in masks:  # it is in no structure of the pattern
                masks[site.name] = self.chooser.start(site)
        release_host_memory()
        return Pruned(masks, joined(tables))

    # Who listens

    def say(self, phase: str, done: int, total: int) -> None:
        """Tell how far a phase is."""
        if self.progress is not None:
            self.progress({"event": "progress", "phase": phase, "done": done, "total": total})

    @contextmanager
    def _in_shot(self, number: int, shots: int) -> Iterator[None]:
        """While open, progress names the shot."""
        tell = self.progress
        if tell is not None:
            self.progress = lambda row: tell({**row, "shot": number, "shots": shots})
        try:
            yield
        finally:
            self.progress = tell

    def tell_block(self, index: int, ratio: float, pruned: Pruned, began: float) -> None:
        """Tell that block ``index`` is pruned, since ``began``."""
        self.say("prune", index + 1, len(self.decoder.blocks))
        sites = self.decoder.sites(index)
        rows = [site_row(site, pruned.masks[site.name]) for site in sites]
        choice = Choice({}, None, pruned.tables)
        self._tell(1, index, ratio, choice, rows, began, state_of(self.decoder, sites, pruned.masks))

    def _tell(
        self, shot: int, block: int | None, target: float, choice: Choice, rows: list[dict[str, Any]],
        began: float, state: Callable[[], State],
    ) -> None:  # fmt: skip
        if self.on_step is None:
            return
        achieved = sum(row["removed"] for row in rows) / sum(row["total"] for row in rows)
        seconds = time.perf_counter() - began
        tables = joined([choice.tables], shot=shot)
        self.on_step(
            StepReport(shot, block, target, achieved, choice.threshold, rows, seconds, tables), state()
        )
