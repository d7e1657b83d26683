"""FFN neurons, attention heads, or blocks as wholes: traced once, scored kind by kind and block by block, removed with all
members.

Masks are rows and columns of single layers, so states, repairs and surgery know nothing of units. Where the pattern
compensates, the output map of a kind makes up for what no longer enters it; a bias that takes the removed units' mean is
made where the layer has none (arXiv:2312.11983, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.models.bias import add
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.narrow import parent
from prunelab.passes.chooser import Choice, Decision, Generators, Part, Pruned, Tables, check_values, joined
from prunelab.passes.collect import BlockValues, Needs
from prunelab.passes.judge import WholeModel
from prunelab.pattern.base import ATTENTION, BLOCKS, UNIFORM, WHOLE
from prunelab.pattern.units import Units
from prunelab.sparsity import mask as masking
from prunelab.sparsity.compensation import least_squares, mean_into_bias
from prunelab.sparsity.mask import Mask, Structured
from prunelab.sparsity.units import Population, Total, budget, equal_shares, lowest, select, unit_price
from prunelab.stats.base import Values
from prunelab.stats.judge import Priced, Weighed
from prunelab.stats.unit_view import Member, UnitView
from prunelab.structures.blocks import check_passing
from prunelab.structures.units import Members, alive_units, trace_units

UNITS = "units"  # tables of what methods say of units begin so
CUT = f"{UNITS}/cut"
MOST_ROWS = 64  # of a table, for one kind of one block in one shot


@dataclass(frozen=True, eq=False)
class _Price:
    """What a method says of one kind of one block. ``evidence``: what it wants back when it merges units, or says in
    ``explain`` why those went that did."""

    population: Population
    members: Members
    importance: Tensor
    evidence: Any
    explain: Callable[[Any, Tensor], Tables] | None

    def told(self, keep: Tensor) -> dict[str, list[dict[str, Any]]]:
        """Return why units go now that ``keep`` (count,) bool stay: tables ``units/...``, cut to ``MOST_ROWS`` rows each.

        What was cut is said in the table ``units/cut``.
        """
        if self.explain is None:
            return {}
        where = {"block": self.members[0][0].block, "kind": self.population.kind}
        tables: dict[str, list[dict[str, Any]]] = {}
        for name, rows in self.explain(self.evidence, ~keep & ~self.population.gone).items():
            tables[f"{UNITS}/{name}"] = [where | row for row in rows[:MOST_ROWS]]
            if len(rows) > MOST_ROWS:
                cut = where | {"table": f"{UNITS}/{name}", "rows": len(rows), "kept": MOST_ROWS}
                tables.setdefault(CUT, []).append(cut)
        return tables


@dataclass(frozen=True, eq=False)
class _Lines:
    """What stays of one layer: rows (R,), columns (C,) bool. ``output``: units that stay, where it is an output map."""

    rows: Tensor
    columns: Tensor
    output: tuple[_Price, Tensor] | None = None


class UnitGroups:
    """The chooser of units."""

    kind = "lines"
    joins_bias = False
    looks_twice = True

    def __init__(self, pattern: Units, decoder: Decoder) -> None:
        self.pattern = pattern
        self._decoder, n = decoder, len(decoder.blocks)
        weights = (parameter.numel() for site in decoder.sites() for parameter in site.linear.parameters())
        self.total = Total(sum(weights), decoder.n_parameters())
        self._open = range(pattern.protect_first, n - pattern.protect_last)
        if not set(WHOLE).isdisjoint(pattern.kinds):
            check_passing(decoder)

    def is_whole(self, method: Any, allocation: object, shots: int) -> bool:
        """Equal shares are known before anything is looked at; several shots look at the model anew."""
        return allocation != UNIFORM or shots > 1

    def start(self, site: LinearSite) -> Mask:
        """Everything stays; no unit ends here unless a part says so."""
        linear = site.linear
        return _mask(_Lines(_ones(linear.out_features), _ones(linear.in_features)), linear.bias is not None)

    def parts(
        self, sites: Sequence[LinearSite], masks: Mapping[str, Mask], values: BlockValues, needs: Needs,
        generators: Generators,
    ) -> Iterator[Part]:  # fmt: skip
        """Yield a part per kind of unit of the block that ``sites`` make up."""
        block = sites[0].block
        for kind, traced in trace_units(self._decoder, block, self.pattern.kinds).items():
            own, members = zip(*traced, strict=True)
            output, seen = members[-1], {site.name: values.get(site.name, {}) for site in own}
            for name, value in seen.items():
                check_values(name, value, needs)
            alive = alive_units(output, masks[output.site]) if output.site in masks else _all(output)
            yield Part(own, UnitView(block, kind, members, alive, generators(output.site), seen))

    def price(self, method: Any, part: Part, masks: Mapping[str, Mask]) -> dict[str, _Price]:
        """Return what the method says of a kind of one block."""
        view: UnitView = part.view
        importance, evidence = (
            method.study(view) if hasattr(method, "study") else (method.importance(view), None)
        )
        population = self._population(view)
        members = tuple(zip(part.sites, view.members, strict=True))
        explain = getattr(method, "explain", None)
        return {population.name: _Price(population, members, importance.cpu(), evidence, explain)}

    def weigh(
        self, method: Any, prices: Mapping[str, _Price], target: float, allocation: str,
        judging: Callable[..., WholeModel],
    ) -> tuple[dict[str, _Price], Tables]:  # fmt: skip
        """Let the method ask the whole model; return its final prices, and what it says of how it came to them.

        ``judging``: makes a judge of what of it depends on the pattern.
        """
        populations = [price.population for price in prices.values()]
        priced = [self._priced(name, price) for name, price in prices.items()]

        def keep(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return select(populations, importance, target, allocation, self.pattern, self.total)

        judge = judging(
            members={
                name: (price.members[0][0].block, tuple(member for _, member in price.members))
                for name, price in prices.items()
            },
            chosen=keep,
            budget=budget(populations, target, self.pattern, self.total),
            min_units=self.pattern.min_units,
        )
        try:
            found: Weighed = method.weigh(priced, judge)
        finally:
            judge.close()
        final = {
            name: replace(
                price,
                importance=found.importance.get(name, price.importance).cpu(),
                evidence=found.evidence.get(name, price.evidence),
            )
            for name, price in prices.items()
        }
        return final, {f"{UNITS}/{name}": rows for name, rows in found.tables.items()}

    def _priced(self, name: str, price: _Price) -> Priced:
        population, block = price.population, price.members[0][0].block
        depth = block / max(1, len(self._decoder.blocks) - 1)
        return Priced(
            name, block, population.kind, depth, float(unit_price(population, self.pattern)), ~population.gone,
            population.open, price.importance, price.evidence,
        )  # fmt: skip

    def choose(self, prices: Mapping[str, _Price], target: float, allocation: str) -> Choice:
        """One ranking, one per kind, or equal shares."""
        importance = {name: price.importance for name, price in prices.items()}
        populations = [price.population for price in prices.values()]
        keep = select(populations, importance, target, allocation, self.pattern, self.total)
        layers: dict[str, _Lines] = {}
        for name, price in prices.items():
            layers |= _lines(price, keep[name])
        removed = [importance[name][~kept & ~prices[name].population.gone] for name, kept in keep.items()]
        dearest = max((float(one.max()) for one in removed if one.numel()), default=None)
        return Choice(layers, dearest, joined(price.told(keep[name]) for name, price in prices.items()))

    def one(
        self, site: LinearSite, masks: Mapping[str, Mask], values: BlockValues, needs: Needs, generators: Generators
    ) -> Part:  # fmt: skip
        """Return the layer with its statistics, for compensation."""
        return Part((site,), values.get(site.name, {}))

    @torch.no_grad()
    def take(
        self, method: Any, site: LinearSite, decision: _Lines | None, part: Callable[[], Part], mask: Mask
    ) -> Mask:
        """Compensate in an output map that loses units; then zero what goes. None: the layer is in no unit."""
        if decision is None:
            return mask
        before = mask.lines()[1]
        if decision.output is not None and bool((before.cpu() & ~decision.columns).any()):
            self._compensate(method, site, decision, part().view)
        return _erase(site, decision, mask.keep_bias_entries() is not None)

    @torch.no_grad()
    def prune(self, method: Any, part: Part, ratio: float) -> Pruned:
        """Remove a kind's share from one block, in place; return the masks of its layers."""
        ((name, price),) = self.price(method, part, {}).items()
        count = equal_shares(self.populations(), ratio, self.pattern, self.total)[name]
        keep = lowest(price.population, price.importance, count)
        masks: dict[str, Mask] = {}
        lines = _lines(price, keep)
        for site in dict.fromkeys(part.sites):
            decision, has_bias = lines[site.name], site.linear.bias is not None
            if decision.output is not None and count:
                self._compensate(method, site, decision, part.view.values[site.name])
            masks[site.name] = _erase(site, decision, has_bias)
        return Pruned(masks, price.told(keep))

    def decide(self, method: Any, part: Part, ratios: Sequence[float]) -> list[Decision]:
        """Never asked: several ratios side by side are for single weights."""
        raise ConfigError("sparsity.pattern", self.pattern.name, "a pattern of single weights")

    def _population(self, view: UnitView) -> Population:
        name = f"{view.kind} of block {view.block}"
        cost = view.cost
        if self.pattern.counts == "model" and view.kind in (
            BLOCKS,
            ATTENTION,
        ):  # with what is no linear map, as norms
            begin = self._decoder.blocks[view.block] if view.kind == BLOCKS else self._attention(view.block)
            linear = {
                id(parameter)
                for site in self._decoder.sites(view.block)
                for parameter in site.linear.parameters()
            }
            cost += sum(one.numel() for one in begin.parameters() if id(one) not in linear)
        lines = min(member.index.shape[1] for member in view.members)
        return Population(name, view.kind, cost, ~view.alive, view.block in self._open, lines)

    def _attention(self, block: int) -> Any:
        return parent(self._decoder.blocks[block], self._decoder.family.attention[3])  # type: ignore[index]

    def populations(self) -> list[Population]:
        """The units of each kind of each block, none of them gone."""
        populations = []
        for block in range(len(self._decoder.blocks)):
            for kind, traced in trace_units(self._decoder, block, self.pattern.kinds).items():
                members = tuple(member for _, member in traced)
                view = UnitView(block, kind, members, _all(members[-1]), torch.Generator())
                populations.append(self._population(view))
        return populations

    def _compensate(self, method: Any, site: LinearSite, decision: _Lines, values: Values) -> None:
        linear, (price, keep_units) = site.linear, decision.output  # type: ignore[misc]
        W, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        keep = decision.columns.to(W.device)
        kind = self.pattern.compensation
        if kind == "bias":
            W, bias = mean_into_bias(W, bias, keep, values["input_moments"].mean)
        elif kind == "least_squares":
            moments, gram = values["input_moments"], values["input_gram"]
            W, bias = least_squares(W, bias, keep, moments.mean, gram.matrix)
        elif kind == "merge":
            W, bias = method.merge(price.evidence, price.members[-1][1], values, keep_units)
        else:
            return
        linear.weight.copy_(W)
        if bias is not None:
            if linear.bias is None:
                add(linear)
            linear.bias.copy_(bias)


def _all(output: Member) -> Tensor:
    return _ones(len(output.index))


def _ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


def _lines(price: _Price, keep: Tensor) -> dict[str, _Lines]:
    """Return by layer which rows and columns stay where the units ``keep`` (count,) bool stay."""
    found: dict[str, _Lines] = {}
    for site, member in price.members:
        R, C = member.W.shape
        old = found.get(site.name) or _Lines(_ones(R), _ones(C))
        (old.rows if member.axis == 0 else old.columns)[member.index[~keep].reshape(-1)] = False
        output = (price, keep) if member is price.members[-1][1] else None
        found[site.name] = _Lines(old.rows, old.columns, output)
    return found


def _mask(lines: _Lines, has_bias: bool) -> Structured:
    keep = None if lines.output is None else lines.output[1]
    whole = (0, 0) if keep is None else (keep.numel(), int((~keep).sum()))
    return Structured(lines.rows, lines.columns, True if has_bias else None, whole)


def _erase(site: LinearSite, decision: _Lines, has_bias: bool) -> Mask:
    """Zero what goes. ``has_bias``: the layer had a bias before anything was compensated."""
    mask = _mask(decision, has_bias)
    masking.apply(mask, site.linear.weight, site.linear.bias)
    return mask
