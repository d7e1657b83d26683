"""Probes: the loss with units left out, as the whole model says it; and a blend fitted to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.importance.fusion import Population, build_population
from prunelab.importance.probe import fit_learned
from prunelab.methods.estimation_fusion import EstimationFusion
from prunelab.models.activation import Placement
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.collect import collect_all
from prunelab.passes.probes import Removal, loss_changes, measure_probes
from prunelab.pattern.base import HEADS, KINDS, NEURONS
from prunelab.stats.unit_view import UnitView
from prunelab.structures.units import trace_units

FUSION = EstimationFusion(
    "estimation_fusion", 1, None, mode="attention", fixed_weight=0.5, fine_order="mixed", coarse_slice="row",
    members="all", bias=True, norm="mean", temperature=0.5, query_mix=0.5,
    probes=64, probe_fraction=0.05, probes_held_out=0.25, width=8, steps=200, rate=0.01, decay=0.001,
    log_term=False, per_parameter=True,
)  # fmt: skip


def removals(decoder: Decoder) -> list[Removal]:
    """Two units of each kind of each block, in no order."""
    found = []
    for block in (1, 0):
        for kind, units in ((NEURONS, (3, 17)), (HEADS, (1,))):
            members = tuple(member for _, member in trace_units(decoder, block, (kind,))[kind])
            found.append(Removal(block, members, torch.tensor(units)))
    return found


@torch.no_grad()
def loss(decoder: Decoder, tokens: Tensor) -> float:
    total = 0.0
    for sequence in tokens:
        logits = decoder.model(input_ids=sequence[None], use_cache=False).logits[0]
        total += float(F.cross_entropy(logits[:-1].float(), sequence[1:])) / len(tokens)
    return total


@torch.no_grad()
def by_hand(name: str, number: int, tokens: Tensor) -> float:
    decoder = random_decoder(name)
    removal = removals(decoder)[number]
    for member in removal.members:
        linear = decoder.site(member.site).linear
        for unit in removal.units.tolist():
            for line in member.index[unit].tolist():
                if member.axis == 1:
                    linear.weight[:, line] = 0
                else:
                    linear.weight[line] = 0
                    if linear.bias is not None:
                        linear.bias[line] = 0
    return loss(decoder, tokens)


def test_a_probe_is_the_loss_without_its_units(family_name: str, tokens: Tensor) -> None:
    decoder = random_decoder(family_name)
    before = {name: parameter.clone() for name, parameter in decoder.model.named_parameters()}
    rows: list[dict] = []
    changes = loss_changes(decoder, tokens, removals(decoder), 2, progress=rows.append)
    dense = loss(decoder, tokens)
    for number, change in enumerate(changes):
        assert change == pytest.approx(by_hand(family_name, number, tokens) - dense, abs=2e-6)
    assert max(map(abs, changes)) > 1e-3
    assert all(torch.equal(p, before[name]) for name, p in decoder.model.named_parameters())
    assert [row["done"] for row in rows] == [1, 2, 3, 4]


def test_batches_and_where_states_wait_change_nothing(tokens: Tensor, tmp_path: Path) -> None:
    decoder = random_decoder("llama")
    expected = loss_changes(decoder, tokens, removals(decoder), 2)
    assert loss_changes(decoder, tokens, removals(decoder), 5) == expected
    on_disk = Placement("disk", None, tmp_path)
    assert loss_changes(decoder, tokens, removals(decoder), 2, placement=on_disk) == expected


def test_weights_come_back_after_a_failure(tokens: Tensor) -> None:
    decoder = random_decoder("opt")
    before = {name: parameter.clone() for name, parameter in decoder.model.named_parameters()}
    (removal, *_) = removals(decoder)
    decoder.blocks[1].fc2.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    with pytest.raises(MemoryError):
        loss_changes(decoder, tokens, [removal], 2)
    assert all(torch.equal(p, before[name]) for name, p in decoder.model.named_parameters())


def test_probes_of_a_decoder_fit_a_blend(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    values = collect_all(decoder, tokens, ("taylor",), 2)
    views: list[UnitView] = []
    populations: list[Population] = []
    for block in (0, 1):
        for kind, traced in trace_units(decoder, block, KINDS).items():
            members = tuple(member for _, member in traced)
            alive = torch.ones(len(members[-1].index), dtype=torch.bool)
            alive[0] = False
            seen = {site.name: values[site.name] for site, _ in traced}
            views.append(UnitView(block, kind, members, alive, torch.Generator(), seen))
            C, E = (part[alive] for part in FUSION.estimates(views[-1]))
            populations.append(build_population(C, E, "mean", kind, float(block)))
    draw = torch.Generator().manual_seed(0)
    probes = measure_probes(decoder, tokens, views, populations, 16, 0.05, 2, draw)
    for probe in probes:
        assert views[probe.population].kind == NEURONS  # of two groups one is gone: none to choose from
        kept = views[probe.population].alive.nonzero()[:, 0][probe.units]
        view = views[probe.population]
        again = loss_changes(decoder, tokens, [Removal(view.block, view.members, kept)], 2)
        assert probe.change == pytest.approx(again[0], abs=1e-9)
        assert 0 not in kept.tolist()
    blend = fit_learned(populations, probes, width=8, temperature=0.5, query_mix=0.5, generator=draw)
    assert [len(a) for a in blend.weights] == [len(one.coarse) for one in populations]
    assert len(blend.scales) == 4
