"""Pruning single weights of all linear layers, block by block (arXiv:2406.15524, section 2).

At each block: one forward with the block's dense weights gives the statistics of all its layers; the method
decides; a second forward, with the pruned weights, gives the next block's input (``propagation="pruned"``, as
the papers do). With ``propagation="dense"`` statistics are those of the untouched model and one forward per
block does. Biases, norms, embeddings and the head are never pruned.

The core, ``passes.decision.decide``, knows layers with one input and their statistics, nothing of transformers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from prunelab.allocation.base import Allocation
from prunelab.errors import ConfigError, ModelError
from prunelab.methods.base import LinearMethod, ScoringMethod
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.inputs import Sums, collect_inputs, groups
from prunelab.models.stream import Stream, advance, fork, open_stream
from prunelab.passes.decision import decide, states, write
from prunelab.sparsity.element import select_global
from prunelab.sparsity.mask import Elementwise, erase
from prunelab.sparsity.pattern import Pattern, check_shape
from prunelab.stats.group import ALONE, Group
from prunelab.stats.linear import Hessian, LinearView, site_generator
from prunelab.structures.state import SiteState, State, StateReader, apply_state, read_state

Progress = Callable[[Mapping[str, Any]], None]
Propagation = Literal["pruned", "dense"]
Spread = Literal["uniform", "global"] | Allocation


@dataclass(frozen=True)
class BlockReport:
    """What pruning one block did. ``ratio``: removed fraction asked for (None under a global threshold);
    ``achieved``: of its weights; ``sites``: rows as in passes.structured.ShotReport; ``seconds``: wall time.
    """

    block: int
    ratio: float | None
    achieved: float
    sites: list[dict[str, Any]]
    seconds: float


OnBlock = Callable[[BlockReport, State], None]


@torch.no_grad()
def prune_linear(
    decoder: Decoder,
    method: LinearMethod,
    tokens: Tensor | None,
    *,
    pattern: Pattern,
    ratio: float,
    seed: int,
    batch_size: int,
    allocation: Spread = "uniform",
    propagation: Propagation = "pruned",
    start: StateReader | None = None,
    start_block: int = 0,
    on_block: OnBlock | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> State:
    """Prune ``decoder``, dense on entry, in place and return its state (it shares the model's memory).

    ``tokens`` (n, seq_len) int64: calibration; None will do where nothing is needed. ``ratio``: removed
    fraction; with n:m it must be the pattern's own, 1 - n/m. ``on_block(report, part)``: ``part`` holds the
    layers of that block; save or clone it before returning. Given the parts of blocks 0 to
    ``start_block - 1`` as ``start``, the rest gives the same bits as one go. ``allocation="global"`` compares
    all layers at once, so it needs a scoring method and, if there are statistics, the dense stream. Of several
    ranks in ``group`` each walks its share of the tokens and all decide the same. Raises ConfigError for what
    does not fit together, ModelError for activations that are not finite.
    """
    plan = _Plan(decoder, method, pattern, seed, group)
    plan.check(ratio, allocation, propagation, tokens)
    n_blocks = len(decoder.blocks)
    if start_block and start is None:
        raise ConfigError("start", None, f"the state of blocks 0 to {start_block - 1}", "Or start_block=0.")
    if allocation == "global":
        return _prune_global(plan, tokens, ratio, batch_size, on_block, progress)
    streamed = bool(method.needs) or not isinstance(allocation, str)
    stream = open_stream(decoder, cast(Tensor, tokens), batch_size, group) if streamed else None
    ratios = _block_ratios(plan, allocation, ratio, stream, progress)
    masks: dict[str, Elementwise] = {}
    for index in range(n_blocks):
        began = time.perf_counter()
        more = stream is not None and bool(method.needs) and index < n_blocks - 1
        if index < start_block:
            if more and propagation == "dense":
                advance(decoder, index, cast(Stream, stream))
            apply_state(decoder, cast(StateReader, start), index)
            for site in decoder.sites(index):
                masks[site.name] = _elementwise(cast(StateReader, start), site.name)
        else:
            views = plan.views(index, stream, go_on=propagation == "dense")
            for layers, view in zip(groups(decoder, index), views, strict=True):
                decision = decide(view, method, pattern, [ratios[index]])[0]
                masks |= write(layers, view, *decision)
            plan.confirm(index)
        if more and propagation == "pruned":
            advance(decoder, index, cast(Stream, stream))
        if index >= start_block:
            _tell(decoder, index, ratios[index], masks, began, on_block, progress)
    return read_state(decoder, masks)


@torch.no_grad()
def prune_ratios(
    decoder: Decoder,
    method: LinearMethod,
    tokens: Tensor | None,
    *,
    pattern: Pattern,
    ratios: Sequence[float],
    seed: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[State]:
    """Return one state per ratio from one pass on the dense stream; ``decoder`` stays dense.

    The same bits as ``prune_linear(..., propagation="dense")`` for each ratio. Statistics and, for
    SparseGPT, the inverse Hessian are shared; weights are held once per ratio.
    """
    plan = _Plan(decoder, method, pattern, seed)
    for ratio in ratios:
        plan.check(ratio, "uniform", "dense", tokens)
    stream = open_stream(decoder, cast(Tensor, tokens), batch_size) if method.needs else None
    items: list[dict[str, SiteState]] = [{} for _ in ratios]
    for index in range(len(decoder.blocks)):
        views = plan.views(index, stream, go_on=True)
        for group, view in zip(groups(decoder, index), views, strict=True):
            for decision, found in zip(decide(view, method, pattern, ratios), items, strict=True):
                found |= states(group, view, *decision)
        _say(progress, "prune", index + 1, len(decoder.blocks))
    return [State(decoder.name, found) for found in items]


@dataclass(frozen=True, eq=False)
class _Plan:
    """A method with a pattern on a decoder."""

    decoder: Decoder
    method: LinearMethod
    pattern: Pattern
    seed: int
    group: Group = ALONE

    def confirm(self, index: int) -> None:
        """Raise StageError unless all ranks hold the same weights in block ``index``."""
        weights = (site.linear.weight for site in self.decoder.sites(index))
        self.group.confirm(weights, f"after block {index}")

    def check(self, ratio: float, allocation: Spread, propagation: str, tokens: Tensor | None) -> None:
        method, pattern = self.method, self.pattern
        if pattern.kind not in method.supports:
            raise ConfigError("sparsity.pattern", pattern.kind, " | ".join(method.supports), method.name)
        fixed = pattern.ratio
        if not 0 <= ratio < 1 or (fixed is not None and abs(ratio - fixed) > 1e-6):
            allowed = (
                "0 <= ratio < 1" if fixed is None else f"{fixed:g}, what {pattern.n}:{pattern.m} removes"
            )
            raise ConfigError("sparsity.ratio", ratio, allowed)
        if propagation not in ("pruned", "dense"):
            raise ConfigError("propagation", propagation, "pruned | dense")
        if isinstance(allocation, str) and allocation not in ("uniform", "global"):
            raise ConfigError("allocation.name", allocation, "uniform | global | owl")
        if allocation != "uniform" and fixed is not None:
            raise ConfigError("allocation.name", allocation, "uniform, since n:m fixes every layer's ratio")
        if pattern.within is not None and not hasattr(method, "score"):
            raise ConfigError(
                "sparsity.within", pattern.within, f"null: {method.name} chooses in its own way"
            )
        if allocation == "global" and not hasattr(method, "score"):
            raise ConfigError("allocation.name", "global", f"uniform or owl: {method.name} has no scores")
        if allocation == "global" and method.needs and propagation != "dense":
            raise ConfigError(
                "propagation", propagation, "dense with allocation=global",
                "All layers are compared before any is pruned.",
            )  # fmt: skip
        if tokens is None and (method.needs or not isinstance(allocation, str)):
            raise ConfigError("calibration", None, "a token set", "The method or the allocation needs one.")
        for site in self.decoder.sites():
            check_shape(pattern, site.name, site.linear.in_features)

    def views(self, index: int, stream: Stream | None, *, go_on: bool) -> list[LinearView]:
        """Return the views of block ``index``; ``go_on``: move the stream on with the weights in place."""
        found: Sequence[Sums | None] = [None] * len(groups(self.decoder, index))
        if self.method.needs:
            assert stream is not None
            found = collect_inputs(
                self.decoder, index, stream, self.method.needs, go_on=go_on, group=self.group
            )
        return [
            self.view(group, sums) for group, sums in zip(groups(self.decoder, index), found, strict=True)
        ]

    def view(self, group: Sequence[LinearSite], sums: Sums | None) -> LinearView:
        names = tuple(site.name for site in group)
        norm = sums.norm.finish() if sums is not None and sums.norm is not None else None
        gram = sums.gram.mean() if sums is not None and sums.gram is not None else None
        for found in (norm, None if gram is None else gram.diagonal()):
            if found is not None and not bool(torch.isfinite(found).all()):
                raise ModelError(
                    f"what enters {names[0]} is not finite. Check the checkpoint and the calibration text, "
                    "or use model.dtype=float32."
                )
        weights = [site.linear.weight.detach() for site in group]
        return LinearView(
            names=names,
            rows=tuple(weight.shape[0] for weight in weights),
            W=weights[0] if len(weights) == 1 else torch.cat(weights),
            norm=norm,
            hessian=None if gram is None else Hessian(gram, names[0]),
            generators=tuple(site_generator(self.seed, name, 1) for name in names),
        )


def _prune_global(
    plan: _Plan, tokens: Tensor | None, ratio: float, batch_size: int,
    on_block: OnBlock | None, progress: Progress | None,
) -> State:  # fmt: skip
    """One threshold over all layers: scores of the dense model first, then the choice."""
    decoder, method = plan.decoder, cast(ScoringMethod, plan.method)
    stream = open_stream(decoder, cast(Tensor, tokens), batch_size, plan.group) if method.needs else None
    names: list[str] = []
    scores: list[Tensor] = []
    for index in range(len(decoder.blocks)):
        for view in plan.views(index, stream, go_on=True):
            score = method.score(view)
            scores += [score[part] for part in view.parts()]
            names += view.names
        _say(progress, "scores", index + 1, len(decoder.blocks))
    keep = dict(zip(names, select_global(scores, ratio), strict=True))
    masks: dict[str, Elementwise] = {}
    for index in range(len(decoder.blocks)):
        began = time.perf_counter()
        for site in decoder.sites(index):
            erase(site.linear.weight, keep[site.name])
            masks[site.name] = Elementwise(keep[site.name].cpu())
        plan.confirm(index)
        _tell(decoder, index, None, masks, began, on_block, progress)
    return read_state(decoder, masks)


def _block_ratios(
    plan: _Plan, allocation: Spread, ratio: float, stream: Stream | None, progress: Progress | None
) -> list[float]:
    """Return every block's ratio; an allocation with numbers walks the dense model once."""
    n_blocks = len(plan.decoder.blocks)
    if isinstance(allocation, str):
        return [ratio] * n_blocks
    walk, shares = fork(cast(Stream, stream)), []
    for index in range(n_blocks):
        found = collect_inputs(
            plan.decoder, index, walk, ("input_norm",), go_on=index < n_blocks - 1, group=plan.group
        )
        scores = []
        for group, sums in zip(groups(plan.decoder, index), found, strict=True):
            assert sums.norm is not None
            norm = sums.norm.finish()
            scores += [site.linear.weight.detach().abs().float() * norm for site in group]
        shares.append(allocation.share(scores))
        _say(progress, "allocation", index + 1, n_blocks)
    return allocation.ratios(shares, ratio)


def _elementwise(state: StateReader, name: str) -> Elementwise:
    mask = state.site(name).mask
    if not isinstance(mask, Elementwise):
        raise ConfigError("start", type(mask).__name__, "a state with masks of single weights", name)
    return mask


def _tell(
    decoder: Decoder, index: int, ratio: float | None, masks: Mapping[str, Elementwise], began: float,
    on_block: OnBlock | None, progress: Progress | None,
) -> None:  # fmt: skip
    _say(progress, "prune", index + 1, len(decoder.blocks))
    if on_block is None:
        return
    sites = decoder.sites(index)
    rows = [_row(site, masks[site.name]) for site in sites]
    achieved = sum(row["removed"] for row in rows) / sum(row["total"] for row in rows)
    items = {}
    for site in sites:
        bias = site.linear.bias
        bias = None if bias is None else bias.detach()
        items[site.name] = SiteState(site.linear.weight.detach(), bias, masks[site.name])
    on_block(
        BlockReport(index, ratio, achieved, rows, time.perf_counter() - began), State(decoder.name, items)
    )


def _row(site: LinearSite, mask: Elementwise) -> dict[str, Any]:
    keep = mask.keep_weight
    return {
        "site": site.name,
        "block": site.block,
        "path": site.path,
        "rows": keep.shape[0],
        "columns": keep.shape[1],
        "rows_removed": int((~keep.any(1)).sum()),
        "columns_removed": int((~keep.any(0)).sum()),
        "removed": mask.removed,
        "total": mask.total,
    }


def _say(progress: Progress | None, phase: str, done: int, total: int) -> None:
    if progress is not None:
        progress({"event": "progress", "phase": phase, "done": done, "total": total})
