"""Views of the units of a decoder with their Taylor sums, and a decoder's gradients in full."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.models.decoder import Decoder
from prunelab.passes.collect import collect_all
from prunelab.pattern.base import KINDS
from prunelab.stats.unit_view import UnitView
from prunelab.structures.units import trace_units


class Taylor:
    """Two ways to the same numbers: statistics of the walk, and gradients of the whole model, kept."""

    def views(self, decoder: Decoder, tokens: Tensor) -> dict[tuple[int, str], UnitView]:
        """The units of every block and kind, all alive."""
        values = collect_all(decoder, tokens, ("taylor",), 2)
        found = {}
        for block in range(len(decoder.blocks)):
            for kind, traced in trace_units(decoder, block, KINDS).items():
                members = tuple(member for _, member in traced)
                alive = torch.ones(len(members[-1].index), dtype=torch.bool)
                seen = {site.name: values[site.name] for site, _ in traced}
                found[block, kind] = UnitView(block, kind, members, alive, torch.Generator(), seen)
        return found

    def terms(self, decoder: Decoder, tokens: Tensor) -> dict[str, dict[str, Tensor]]:
        """The terms of every weight of every layer, (R, C + 1) with the bias' as last column, 0 without one."""
        sites = decoder.sites()
        parameters = [p for s in sites for p in (s.linear.weight, s.linear.bias) if p is not None]
        for parameter in parameters:
            parameter.requires_grad_(True)
        each: dict[str, list[Tensor]] = {site.name: [] for site in sites}
        for sequence in tokens:
            logits = decoder.model(input_ids=sequence[None], use_cache=False).logits[0]
            found = iter(torch.autograd.grad(F.cross_entropy(logits[:-1], sequence[1:]), parameters))
            for site in sites:
                weight, bias = next(found), None if site.linear.bias is None else next(found)
                each[site.name].append(self.joined(weight, bias))
        for parameter in parameters:
            parameter.requires_grad_(False)
        terms = {}
        for site in sites:
            w = self.joined(site.linear.weight, site.linear.bias)
            g = torch.stack(each[site.name]).mean(0)
            fisher = torch.stack(each[site.name]).square().mean(0)
            terms[site.name] = {
                "signed": w * g, "element1": (w * g).abs(), "second": w**2 * fisher,
                "mixed": (w * g - 0.5 * w**2 * fisher).abs(),
            }  # fmt: skip
        return terms

    @staticmethod
    def joined(weight: Tensor, bias: Tensor | None) -> Tensor:
        """[W b] in float64."""
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return torch.cat([weight.detach(), bias.detach()[:, None]], 1).double()


@pytest.fixture(scope="session")
def taylor() -> Taylor:
    """How to look at units and gradients."""
    return Taylor()
