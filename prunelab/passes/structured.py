"""Pruning rows and columns of all linear layers in several shots (arXiv:2312.17244).

Each shot: collect factors on the model as it is, set dead rows and columns aside at cost 0, ask the method
for the costs of the live ones, find one threshold over all layers (or one per layer), then update and zero
layer by layer. The core, ``prune_once``, knows linear layers and their factors and nothing of transformers.

Dead: a row whose weights are all zero or whose G_rr is 0, a column whose weights are all zero or whose A_cc
is 0. They make the coupling between layers: a removed row of fc1 leaves a column of fc2 without input, which
the next shot then removes for nothing, and the other way round. Dead structures take no part in updates, so
masks only grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunelab.errors import ConfigError
from prunelab.methods.base import StructuredMethod
from prunelab.models.decoder import Decoder
from prunelab.passes.curvature import Progress, collect_factors
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Structured
from prunelab.sparsity.structured import Selection, SiteCosts, select
from prunelab.stats import heap
from prunelab.stats.group import ALONE, Group
from prunelab.stats.kronecker import Factors
from prunelab.stats.linear import site_generator
from prunelab.stats.site import Gram, SiteView
from prunelab.structures.state import State, StateReader, apply_state, read_state

Allocation = Literal["global", "uniform"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer to prune, with the mask it already has."""

    name: str
    linear: nn.Linear
    mask: Structured


@dataclass(frozen=True)
class ShotReport:
    """What one shot did. ``shot`` counts from 1; ``target`` and ``achieved`` are removed fractions of the
    weights.

    ``sites``: rows {site, block, path, rows, columns, rows_removed, columns_removed, removed, total}, bias
    columns included; ``seconds``: wall time.
    """

    shot: int
    target: float
    achieved: float
    threshold: float
    sites: list[dict[str, Any]]
    seconds: float


def prune(
    decoder: Decoder,
    method: StructuredMethod,
    tokens: Tensor | None,
    schedule: Sequence[float],
    *,
    seed: int,
    batch_size: int,
    allocation: Allocation = "global",
    start: StateReader | None = None,
    start_shot: int = 0,
    on_shot: Callable[[ShotReport, State], None] | None = None,
    progress: Progress | None = None,
    hold: torch.device | str | None = None,
    group: Group = ALONE,
) -> State:
    """Prune ``decoder`` in place along ``schedule`` and return its state.

    ``tokens`` (n, seq_len) int64: calibration; None will do for a method without needs. ``schedule``:
    cumulative targets of **all** shots, growing; the first ``start_shot`` of them are skipped because
    ``start`` is the state after them, and the rest gives the same bits as one go. ``hold``: where factors
    wait (see ``collect_factors``). ``on_shot(report, state)`` is called after each shot. States share memory
    with the decoder: save or clone the one given to ``on_shot`` before it returns. Of several ranks in ``group``
    each walks its share of the tokens and all decide the same. Raises ConfigError for a bad schedule, ModelError
    for a state of another model or for activations that are not finite.
    """
    _check_schedule(schedule, start, start_shot)
    masks = _start_masks(decoder, start)
    for number, target in enumerate(schedule[start_shot:], start_shot + 1):
        began = time.perf_counter()
        say = _with_shot(progress, number, len(schedule))
        factors = collect_factors(decoder, tokens, method.needs, batch_size, say, hold, group)
        layers = [Layer(site.name, site.linear, masks[site.name]) for site in decoder.sites()]
        new, chosen = prune_once(
            layers, factors, method, target, seed=seed, shot=number, allocation=allocation, progress=say
        )
        masks = {layer.name: mask for layer, mask in zip(layers, new, strict=True)}
        group.confirm((layer.linear.weight for layer in layers), f"after shot {number}")
        if on_shot is not None:
            achieved = chosen.removed / chosen.total
            rows = site_rows(decoder, masks)
            seconds = time.perf_counter() - began
            report = ShotReport(number, target, achieved, chosen.threshold, rows, seconds)
            on_shot(report, read_state(decoder, masks))
    return read_state(decoder, masks)


def prune_once(
    layers: Sequence[Layer],
    factors: dict[str, Factors],
    method: StructuredMethod,
    target: float,
    *,
    seed: int,
    shot: int,
    allocation: Allocation = "global",
    progress: Progress | None = None,
) -> tuple[list[Structured], Selection]:
    """Prune ``layers`` in place to a removed fraction ``target`` of all their weights; return the new masks.

    ``factors`` is emptied layer by layer, so that memory falls while updates run. ``shot`` counts from 1 and,
    with ``seed`` and the layer's name, seeds the generator that methods draw from.
    """
    if allocation not in ("global", "uniform"):
        raise ConfigError("allocation.name", allocation, "global | uniform")
    say = progress or (lambda row: None)
    views = _Views(method, seed, shot)
    costs = []
    for i, site in enumerate(layers):
        live = _live(site, factors[site.name])
        view = views.build(site, factors[site.name], *live)
        costs.append(_costs(site, method, view, *live))
        heap.trim()
        say({"event": "progress", "phase": "costs", "done": i + 1, "total": len(layers)})
    chosen = select(costs, target, "global" if allocation == "global" else "site")
    masks = []
    for i, (site, keep) in enumerate(zip(layers, chosen.keep, strict=True)):
        own = factors.pop(site.name)
        live = _live(site, own)
        device = site.linear.weight.device
        keep_rows, keep_columns = (k.to(device) for k in keep)
        keep_live = keep_rows[live[0]], keep_columns[live[1]]
        if not (keep_live[0].all() and keep_live[1].all()):
            updated = method.update(views.build(site, own, *live), *keep_live)
            if updated is not None:
                _write(site.linear, updated, *live)
        mask = masking.split(keep_rows, keep_columns, site.linear.bias is not None)
        masking.apply(mask, site.linear.weight, site.linear.bias)
        masks.append(mask)
        heap.trim()
        say({"event": "progress", "phase": "update", "done": i + 1, "total": len(layers)})
    return masks, chosen


def site_rows(decoder: Decoder, masks: Mapping[str, Structured]) -> list[dict[str, Any]]:
    """Return one flat row per layer with what was removed from it."""
    rows = []
    for site in decoder.sites():
        mask = masks[site.name]
        rows.append(
            {
                "site": site.name,
                "block": site.block,
                "path": site.path,
                "rows": mask.keep_rows.numel(),
                "columns": mask.n_columns,
                "rows_removed": mask.rows_removed,
                "columns_removed": mask.columns_removed,
                "removed": mask.removed,
                "total": mask.total,
            }
        )
    return rows


class _Views:
    """Builds the live views of one shot; layers that share a factor and its live columns share a Gram."""

    def __init__(self, method: StructuredMethod, seed: int, shot: int) -> None:
        self.method, self.seed, self.shot = method, seed, shot
        self.shared: tuple[Tensor, Tensor, Gram] | None = None  # factor, live columns, their Gram

    def build(self, site: Layer, factors: Factors, live_rows: Tensor, live_columns: Tensor) -> SiteView:
        W = _joined(site.linear)[live_rows][:, live_columns]
        G = None
        if factors.G is not None:
            G = Gram(_part(factors.G.to(W.device), live_rows), f"{site.name} (output)")
        return SiteView(
            name=site.name,
            W=W,
            input_gram=None if factors.A is None else self._input(site, factors.A, live_columns),
            output_gram=G,
            has_bias=site.linear.bias is not None and bool(live_columns[-1]),
            generator=site_generator(self.seed, site.name, self.shot),
        )

    def _input(self, site: Layer, A: Tensor, live: Tensor) -> Gram:
        if self.shared is None or self.shared[0] is not A or not torch.equal(self.shared[1], live):
            self.shared = (A, live, Gram(_part(A.to(live.device), live), f"{site.name} (input)"))
        return self.shared[2]


def _joined(linear: nn.Linear) -> Tensor:
    """``[W  b]``, (R, C + 1), or W where there is no bias; detached."""
    weight = linear.weight.detach()
    return weight if linear.bias is None else torch.cat([weight, linear.bias.detach()[:, None]], 1)


def _part(factor: Tensor, live: Tensor) -> Tensor:
    return factor if bool(live.all()) else factor[live][:, live]


def _live(site: Layer, factors: Factors) -> tuple[Tensor, Tensor]:
    """Return which rows and columns of ``[W  b]`` are neither zero nor without gradient or input."""
    used = _joined(site.linear) != 0
    rows, columns = used.any(1), used.any(0)
    rows &= site.mask.keep_rows.to(rows.device)
    columns &= site.mask.joined_columns().to(columns.device)
    if factors.G is not None:
        rows &= factors.G.diagonal().to(rows.device) != 0
    if factors.A is not None:
        columns &= factors.A.diagonal().to(columns.device) != 0
    return rows, columns


def _costs(
    site: Layer, method: StructuredMethod, view: SiteView, live_rows: Tensor, live_columns: Tensor
) -> SiteCosts:
    """The method's costs in full coordinates, 0 where dead, on the CPU."""
    full = []
    empty = view.W.numel() == 0
    found = (
        (view.W.new_zeros(view.W.shape[0]), view.W.new_zeros(view.W.shape[1]))
        if empty
        else method.costs(view)
    )
    for costs, live in zip(found, (live_rows, live_columns), strict=True):
        vector = torch.zeros(live.numel(), dtype=torch.float64)
        vector[live.cpu()] = costs.to("cpu", torch.float64)
        full.append(vector)
    return SiteCosts(site.name, full[0], full[1], ~site.mask.keep_rows, ~site.mask.joined_columns())


@torch.no_grad()
def _write(linear: nn.Linear, updated: Tensor, live_rows: Tensor, live_columns: Tensor) -> None:
    """Put the new live weights in their places of weight and bias; everything else stays as it is."""
    joined = _joined(linear).clone()
    rows, columns = live_rows.nonzero(), live_columns.nonzero()[:, 0]
    joined[rows, columns] = updated.to(joined.dtype)
    linear.weight.copy_(joined[:, : linear.in_features])
    if linear.bias is not None:
        linear.bias.copy_(joined[:, -1])


def _with_shot(progress: Progress | None, number: int, shots: int) -> Progress | None:
    if progress is None:
        return None
    return lambda row: progress({**row, "shot": number, "shots": shots})


def _check_schedule(schedule: Sequence[float], start: StateReader | None, start_shot: int) -> None:
    for before, after in zip([0.0, *schedule], schedule, strict=False):
        if not 0 <= before <= after < 1:
            raise ConfigError("schedule", list(schedule), "growing ratios, 0 <= ratio < 1")
    if not 0 <= start_shot <= len(schedule):
        raise ConfigError("start_shot", start_shot, f"0 to {len(schedule)}, the number of shots")
    if start_shot > 0 and start is None:
        raise ConfigError(
            "start", None, f"the state after shot {start_shot}", "Without one use start_shot=0."
        )


def _start_masks(decoder: Decoder, start: StateReader | None) -> dict[str, Structured]:
    """Put the start state, if any, into the decoder; return the masks to begin with."""
    if start is None:
        return {site.name: masking.full(site.linear.weight, site.linear.bias) for site in decoder.sites()}
    apply_state(decoder, start)
    masks = {}
    for site in decoder.sites():
        mask = start.site(site.name).mask
        if not isinstance(mask, Structured):
            raise ConfigError(
                "start", type(mask).__name__, "a state with masks of rows and columns", site.name
            )
        masks[site.name] = mask
    return masks
