"""Pruning single weights of all linear layers, block by block (arXiv:2406.15524, section 2).

At each block: one forward with the block's dense weights gives the statistics of all its layers; the method
decides; a second forward, with the pruned weights, gives the next block's input (``propagation="pruned"``, as
the papers do). With ``propagation="dense"`` statistics are those of the untouched model: one forward per block
does, and none if they were collected before (passes.statistics). Biases, norms, embeddings and the head are
never pruned.

The core, ``passes.decision.decide``, knows layers with one input and their statistics, nothing of transformers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from prunelab.allocation.base import Allocation
from prunelab.errors import ConfigError
from prunelab.methods.base import LinearMethod, ScoringMethod
from prunelab.models.activation import Placement, Shelf, open_shelf
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.inputs import groups
from prunelab.models.stream import Stream, advance, fork, open_stream
from prunelab.passes.decision import decide, states, write
from prunelab.passes.statistics import Statistics
from prunelab.passes.view import Source, Views, found_of
from prunelab.sparsity.element import select_global
from prunelab.sparsity.mask import Elementwise, erase
from prunelab.sparsity.pattern import Pattern, check_shape
from prunelab.stats import heap
from prunelab.stats.group import ALONE, Group
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
    statistics: Statistics | None = None,
    placement: Placement | None = None,
    start: StateReader | None = None,
    start_block: int = 0,
    on_block: OnBlock | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> State:
    """Prune ``decoder``, dense on entry, in place and return its state (it shares the model's memory).

    ``tokens`` (n, seq_len) int64: calibration; None will do where nothing is needed. ``ratio``: removed
    fraction; with n:m it must be the pattern's own, 1 - n/m. ``statistics``: of the dense model, instead of
    tokens where ``propagation="dense"``; the bits are the same. ``placement``: where hidden states wait between
    blocks; None = on the model's device. ``on_block(report, part)``: ``part`` holds the layers of that block;
    save or clone it before returning. Given the parts of blocks 0 to
    ``start_block - 1`` as ``start``, the rest gives the same bits as one go. ``allocation="global"`` compares
    all layers at once, so it needs a scoring method and, if there are statistics, the dense stream. Of several
    ranks in ``group`` each walks its share of the tokens and all decide the same. Raises ConfigError for what
    does not fit together, ModelError for activations that are not finite.
    """
    _check(decoder, method, pattern, ratio, allocation, propagation, tokens, statistics)
    if start_block and start is None:
        raise ConfigError("start", None, f"the state of blocks 0 to {start_block - 1}", "Or start_block=0.")
    with open_shelf(placement or Placement("device"), decoder.dtype, decoder.device) as shelf:
        source: Source = statistics
        if source is None and _needs(method, allocation):
            source = open_stream(decoder, cast(Tensor, tokens), batch_size, shelf, group)
        views = Views(decoder, method, seed, source)
        if allocation == "global":
            return _prune_global(views, ratio, start_block, on_block, progress, group)
        ratios = _block_ratios(views, allocation, ratio, shelf, progress)
        masks: dict[str, Elementwise] = {}
        for index, more in _blocks(decoder):
            began = time.perf_counter()
            stream = source if more and method.needs and isinstance(source, Stream) else None
            if index < start_block:
                if stream is not None and propagation == "dense":
                    advance(decoder, index, stream)
                masks |= _put(decoder, index, cast(StateReader, start))
            else:
                masks |= _decide(views, index, pattern, ratios[index], more and propagation == "dense")
                _confirm(decoder, index, group)
            if stream is not None and propagation == "pruned":
                advance(decoder, index, stream)
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
    for ratio in ratios:
        _check(decoder, method, pattern, ratio, "uniform", "dense", tokens, None)
    stream = open_stream(decoder, cast(Tensor, tokens), batch_size) if method.needs else None
    views = Views(decoder, method, seed, stream)
    items: list[dict[str, SiteState]] = [{} for _ in ratios]
    for index, more in _blocks(decoder):
        for group, view in views.block(index, go_on=more):
            for decision, found in zip(decide(view, method, pattern, ratios), items, strict=True):
                found |= states(group, view, *decision)
        _say(progress, "prune", index + 1, len(decoder.blocks))
    return [State(decoder.name, found) for found in items]


def _decide(views: Views, index: int, pattern: Pattern, ratio: float, go_on: bool) -> dict[str, Elementwise]:
    """Prune block ``index``; return its masks. Its statistics are gone when this returns."""
    masks = {}
    for group, view in views.block(index, go_on=go_on):
        decision = decide(view, views.method, pattern, [ratio])[0]
        masks |= write(group, view, *decision)
    heap.trim()
    return masks


def _confirm(decoder: Decoder, index: int, group: Group) -> None:
    """Raise StageError unless all ranks hold the same weights in block ``index``."""
    group.confirm((site.linear.weight for site in decoder.sites(index)), f"after block {index}")


def _blocks(decoder: Decoder) -> Iterator[tuple[int, bool]]:
    """Every block's index, and whether another one follows."""
    last = len(decoder.blocks) - 1
    return ((index, index < last) for index in range(last + 1))


def _needs(method: LinearMethod, allocation: Spread) -> set[str]:
    return set(method.needs) | (set() if isinstance(allocation, str) else {"input_norm"})


def _check(
    decoder: Decoder, method: LinearMethod, pattern: Pattern, ratio: float, allocation: Spread,
    propagation: str, tokens: Tensor | None, statistics: Statistics | None,
) -> None:  # fmt: skip
    if pattern.kind not in method.supports:
        raise ConfigError("sparsity.pattern", pattern.kind, " | ".join(method.supports), method.name)
    fixed = pattern.ratio
    if not 0 <= ratio < 1 or (fixed is not None and abs(ratio - fixed) > 1e-6):
        allowed = "0 <= ratio < 1" if fixed is None else f"{fixed:g}, what {pattern.n}:{pattern.m} removes"
        raise ConfigError("sparsity.ratio", ratio, allowed)
    if propagation not in ("pruned", "dense"):
        raise ConfigError("propagation", propagation, "pruned | dense")
    if isinstance(allocation, str) and allocation not in ("uniform", "global"):
        raise ConfigError("allocation.name", allocation, "uniform | global | owl")
    if allocation != "uniform" and fixed is not None:
        raise ConfigError("allocation.name", allocation, "uniform, since n:m fixes every layer's ratio")
    if pattern.within is not None and not hasattr(method, "score"):
        raise ConfigError("sparsity.within", pattern.within, f"null: {method.name} chooses in its own way")
    if allocation == "global" and not hasattr(method, "score"):
        raise ConfigError("allocation.name", "global", f"uniform or owl: {method.name} has no scores")
    if allocation == "global" and method.needs and propagation != "dense":
        raise ConfigError(
            "propagation", propagation, "dense with allocation=global",
            "All layers are compared before any is pruned.",
        )  # fmt: skip
    needs = _needs(method, allocation)
    if statistics is None and tokens is None and needs:
        raise ConfigError("calibration", None, "a token set", "The method or the allocation needs one.")
    if statistics is not None:
        if propagation != "dense":
            raise ConfigError("propagation", propagation, "dense with statistics of the dense model")
        if not needs <= set(statistics.needs):
            raise ConfigError("statistics", statistics.needs, f"{', '.join(sorted(needs))} among them")
    for site in decoder.sites():
        check_shape(pattern, site.name, site.linear.in_features)


def _prune_global(
    views: Views, ratio: float, start_block: int, on_block: OnBlock | None, progress: Progress | None,
    group: Group,
) -> State:  # fmt: skip
    """One threshold over all layers: scores of the dense model first, then the choice.

    The scores of all layers are held at once, four bytes a weight.
    """
    decoder, method = views.decoder, cast(ScoringMethod, views.method)
    names: list[str] = []
    scores: list[Tensor] = []
    for index, more in _blocks(decoder):
        for _, view in views.block(index, go_on=more):
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
        _confirm(decoder, index, group)
        if index >= start_block:
            _tell(decoder, index, None, masks, began, on_block, progress)
    return read_state(decoder, masks)


def _block_ratios(
    views: Views, allocation: Spread, ratio: float, shelf: Shelf, progress: Progress | None
) -> list[float]:
    """Return every block's ratio; an allocation with numbers looks at the dense model first."""
    decoder, n_blocks = views.decoder, len(views.decoder.blocks)
    if isinstance(allocation, str):
        return [ratio] * n_blocks
    walk = fork(views.source, shelf) if isinstance(views.source, Stream) else views.source
    shares = []
    for index, more in _blocks(decoder):
        found = found_of(decoder, index, walk, ("input_norm",), go_on=more)
        scores = []
        for group, statistics in zip(groups(decoder, index), found, strict=True):
            norm = cast(Tensor, statistics.norm)
            scores += [site.linear.weight.detach().abs().float() * norm for site in group]
        shares.append(allocation.share(scores))
        _say(progress, "allocation", index + 1, n_blocks)
    if isinstance(walk, Stream):
        shelf.discard(walk.hidden)
    return allocation.ratios(shares, ratio)


def _put(decoder: Decoder, index: int, state: StateReader) -> dict[str, Elementwise]:
    """Put what an earlier attempt made of block ``index`` in place; return its masks."""
    apply_state(decoder, state, index)
    return {site.name: _elementwise(state, site.name) for site in decoder.sites(index)}


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
