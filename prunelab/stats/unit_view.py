"""What a method of scope ``unit`` sees: the units of one kind of one block, their weights, and the statistics it asked for.

A unit is the smallest set of slices that must vanish together so that shapes stay consistent (arXiv:2305.11627, section
3.1): an FFN neuron, or a KV group, which is a key and value head with the query heads that it serves. A member is the
unit's lines in one linear map. The last member is the output map, by columns: what a unit gives to the residual stream
goes through it. A whole block is a unit too, alone in its view: all maps by rows, the last one in forward order; and so is
a block's whole attention, or MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.stats.base import Values


@dataclass(frozen=True, eq=False)
class Member:
    """A unit's lines in one linear map. ``role``: ``gate``, ``up``, ``down``; or ``query``, ``key``, ``value``,
    ``output``; of a block or a sub-layer the maps' paths. ``site``: the layer's full name. ``W`` (R, C) and ``bias`` (R,) or
    None: all of the layer, not its lines only. ``axis``: 0 = lines are rows, 1 = columns. ``index`` (count, lines) int64:
    the lines of each unit.
    """

    role: str
    site: str
    W: Tensor
    bias: Tensor | None
    axis: int
    index: Tensor

    def per_unit(self, lines: Tensor) -> Tensor:
        """Return the sums (count,) of what ``lines`` (R,) or (C,) says of every line, over each unit's lines."""
        return lines[self.index.to(lines.device)].sum(1)

    def lines(self) -> Tensor:
        """Return the weights (count, lines, length) of each unit."""
        W = self.W if self.axis == 0 else self.W.T
        return W[self.index.to(W.device)]

    @property
    def parameters(self) -> int:
        """Parameters of one unit here; a row takes its bias entry along."""
        entries = self.W.shape[1] + (self.bias is not None) if self.axis == 0 else self.W.shape[0]
        return self.index.shape[1] * entries


@dataclass(frozen=True, eq=False)
class UnitView:
    """The units of one kind (``neurons``, ``heads``, ``attention``, ``ffn`` or ``blocks``) of block ``block``.

    ``alive`` (count,) bool: not removed by an earlier shot. ``values``: by layer name, then by the names in the method's
    ``needs`` and its pattern's. ``generator``: seeded by (seed, output map, shot), on the CPU.
    """

    block: int
    kind: str
    members: tuple[Member, ...]
    alive: Tensor
    generator: torch.Generator
    values: Mapping[str, Values] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The output map's name."""
        return self.output.site

    @property
    def output(self) -> Member:
        """The map that brings units to the residual stream, by columns; of what goes as a whole the last map, by rows."""
        return self.members[-1]

    @property
    def count(self) -> int:
        """How many units there are, removed ones among them."""
        return self.output.index.shape[0]

    @property
    def cost(self) -> int:
        """Parameters of one unit; all units of a kind in a block cost the same."""
        return sum(member.parameters for member in self.members)

    def member(self, role: str) -> Member:
        """The member of that role; ModelError if units of this kind have none."""
        for member in self.members:
            if member.role == role:
                return member
        roles = ", ".join(member.role for member in self.members)
        raise ModelError(f"{self.kind} of block {self.block} have no member {role!r}; they have {roles}.")

    def value(self, member: Member, need: str) -> Any:
        """A statistic of a member's layer; ModelError if the method's ``needs`` left it out."""
        values = self.values.get(member.site, {})
        if need not in values:
            raise ModelError(f"{member.site}: add {need!r} to the method's needs.")
        return values[need]
