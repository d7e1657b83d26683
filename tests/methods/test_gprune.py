"""GPrune-LLM: facts about its modules, its switched metric, its shares, and that it prunes every family. arXiv:2603.13418."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from prunelab.evaluation.integrity import check
from prunelab.generalization.budget import Modules
from prunelab.generalization.curve import by_curves, drop_curve, output_power
from prunelab.generalization.module import Partition, means, partition
from prunelab.generalization.reliability import unreliable
from prunelab.generalization.sensitivity import measure
from prunelab.methods.flap import FLAP
from prunelab.methods.gprune import FIRST, GPrune
from prunelab.methods.wanda_sp import WandaSP
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.table import build_pattern
from prunelab.stats.domain import Domain
from prunelab.stats.gram import InputGram
from prunelab.stats.input_moments import InputMoments
from prunelab.stats.unit_view import Member, UnitView
from prunelab.structures.state import State, state_digest

CONF = yaml.safe_load((Path(__file__).parents[2] / "conf" / "method" / "gprune.yaml").read_text())
GPRUNE = GPrune(**{key: value for key, value in CONF.items() if key != "_target_"})
PERCENTILE = replace(GPRUNE, shares="uniform", s_max=1.0)
OFF = replace(PERCENTILE, neuron_modules=1, head_modules=1, reliability="none")
COUNT, WIDTH = 80, 12
UNITS = build_pattern("units")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics(z: Tensor) -> dict[str, Any]:
    """Statistics of the inputs z (sequences, tokens, width)."""
    found = {}
    for one in (InputMoments(), InputGram()):
        running = one.start("down", z.shape[-1], ones=False, device=torch.device("cpu"))
        running.add(z)
        found[one.name] = running.finish()
    return found


def inputs(d: int = 4, seed: int = 0, dead: int | None = None) -> list[Tensor]:
    """What enters the output map on d texts, (6, 20, COUNT) each; a third of the units depends on the text."""
    depends = torch.arange(COUNT) % 3 == 0
    size = torch.exp(random(COUNT, seed=seed)) * torch.where(depends, 0.4, 1.0)
    own = torch.exp(1.5 * random(d, COUNT, seed=seed + 1) * depends)
    z = [size * own[i] * random(6, 20, COUNT, seed=seed + 2 + i) + 0.2 for i in range(d)]
    for text in z:
        if dead is not None:
            text[..., dead] = 0
    return z


def view(z: list[Tensor], weights: dict[str, Tensor] | None = None) -> UnitView:
    found = weights or weights_of(3)
    index = torch.arange(COUNT)[:, None]
    members = tuple(
        Member(role, role, W, None, 1 if role == "down" else 0, index) for role, W in found.items()
    )
    halves = [Domain((statistics(x[0::2]), statistics(x[1::2])), (60, 60)) for x in z]
    values = {"down": {**statistics(z[0]), "domains": tuple(halves)}}
    return UnitView(0, "neurons", members, torch.ones(COUNT, dtype=torch.bool), torch.Generator(), values)


def weights_of(seed: int) -> dict[str, Tensor]:
    gate, up = random(COUNT, WIDTH, seed=seed), random(COUNT, WIDTH, seed=seed + 1)
    return {"gate": gate, "up": up, "down": random(WIDTH, COUNT, seed=seed + 2)}


def scores(z: list[Tensor], down: Tensor) -> Tensor:
    """Wanda-sp on every text, (D, COUNT), from all tokens at once."""
    norms = torch.stack([x.double().reshape(-1, COUNT).square().mean(0).sqrt() for x in z])
    return norms * down.double().abs().mean(0)


def modules(method: GPrune, z: list[Tensor], down: Tensor) -> tuple[Tensor, Tensor]:
    """The labels of all units and which modules are unreliable, from whole and half texts."""
    halves = torch.stack([scores([x[half::2] for x in z], down) for half in (0, 1)])
    found = measure(scores(z, down), halves=halves if method.noise_correction else None)
    labels = partition(found, Partition(method.partition, method.neuron_modules, method.min_module_frac, 4))
    return labels, unreliable(found, labels, rule=method.reliability)


def test_percentiles_inside_modules_by_activations_or_weights() -> None:
    z, weights = inputs(), weights_of(3)
    labels, switched = modules(PERCENTILE, z, weights["down"])
    assert 0 < int(switched.sum()) < len(switched) > 1
    found = PERCENTILE.importance(view(z, weights))
    base = scores(z, weights["down"])[0]
    path = weights["gate"].norm(dim=1) * weights["up"].norm(dim=1) * weights["down"].norm(dim=0)
    for j in range(len(switched)):
        mine = (labels == j).nonzero()[:, 0]
        order = (path if switched[j] else base)[mine].argsort()
        expected = (torch.arange(len(mine)) + 0.5) / len(mine)
        torch.testing.assert_close(found[mine[order]], expected.double())


@pytest.mark.parametrize("base", ["wanda_sp", "flap"])
def test_without_modules_it_orders_as_the_base_metric(base: str) -> None:
    one = view(inputs())
    method = replace(OFF, base=base)
    own = WandaSP("wanda_sp", 1, None) if base == "wanda_sp" else FLAP("flap", 1, None, "WIFV", 2.0)
    whole = dict(one.values["down"]) | {"input_norm": torch.cat(list(inputs()[0])).square().mean(0).sqrt()}
    expected = own.importance(replace(one, values={"down": whole}))
    assert torch.equal(method.importance(one).argsort(), expected.argsort())


def test_switched_modules_do_not_look_at_activations_and_others_do() -> None:
    everywhere = replace(PERCENTILE, reliability="all", neuron_modules=1)
    one, other = (everywhere.importance(view(inputs(seed=s))) for s in (0, 50))
    assert torch.equal(one, other)
    nowhere = replace(everywhere, reliability="none")
    one, other = (nowhere.importance(view(inputs(seed=s))) for s in (0, 50))
    assert not torch.equal(one, other)
    one, other = (
        nowhere.importance(view(inputs(), weights_of(s) | {"down": weights_of(3)["down"]})) for s in (3, 9)
    )
    assert torch.equal(one, other)  # gate and up are in no activation metric
    pooled = replace(everywhere, scoring_source="pooled_activations")
    z = inputs()
    order = measure(scores(z, weights_of(3)["down"])).u.argsort(stable=True)
    assert torch.equal(pooled.importance(view(z)).argsort(stable=True), order)
    assert torch.equal(replace(nowhere, rank_from="pooled").importance(view(z)).argsort(stable=True), order)


@pytest.mark.parametrize("shares", ["uniform", "proportional", "curves"])
def test_a_dead_unit_goes_first_whatever_its_weights(shares: str) -> None:
    method, weights = replace(GPRUNE, shares=shares, slope=-1.0), weights_of(3)
    weights["up"][7] *= 1e6
    weights["down"][:, 7] *= 1e6
    found = method.importance(view(inputs(dead=7), weights))
    assert found[7] == FIRST
    assert float(found[torch.arange(COUNT) != 7].min()) > FIRST
    gone = view(inputs())
    gone = replace(gone, alive=torch.arange(COUNT) != 5)
    assert torch.isfinite(method.importance(gone)).all()


def test_one_text_several_times_is_no_reason_to_switch() -> None:
    z = inputs(1) * 4
    method = replace(PERCENTILE, noise_correction=False)
    _, switched = modules(method, z, weights_of(3)["down"])
    assert not switched.any()


def test_shares_in_proportion_to_sensitivity() -> None:
    z, slope = inputs(), 0.6
    labels, _ = modules(GPRUNE, z, weights_of(3)["down"])
    down = weights_of(3)["down"]
    halves = torch.stack([scores([x[half::2] for x in z], down) for half in (0, 1)])
    V = means(measure(scores(z, down), halves=halves).v, labels)
    found = replace(GPRUNE, shares="proportional", slope=slope).importance(view(z))
    gone = found < found.sort().values[COUNT // 2]
    counts = torch.bincount(labels)
    share = torch.bincount(labels[gone], minlength=len(counts)) / counts
    level = (share - slope * V).tolist()  # b, but for whole units
    assert max(level) - min(level) <= float((1 / counts).max()) * 2


@pytest.mark.parametrize("biased", [False, True])
def test_curves_spend_where_the_pooled_output_suffers_least(biased: bool) -> None:
    z, weights = inputs(), weights_of(3)
    labels, _ = modules(GPRUNE, z, weights["down"])
    method = replace(GPRUNE, curve_bias=biased)
    percentile, price = PERCENTILE.importance(view(z, weights)), method.importance(view(z, weights))
    tokens = torch.cat([x.double().reshape(-1, COUNT) for x in z])
    moment, mean = tokens.T @ tokens / len(tokens), tokens.mean(0)
    power, counts, errors, grids = output_power(weights["down"], moment), torch.bincount(labels), [], []
    for j, n in enumerate(counts.tolist()):
        mine = (labels == j).nonzero()[:, 0]
        columns = mine[percentile[mine].argsort()][:, None]
        grids.append(sorted({round(share * n) / n for share in (*[i / 10 for i in range(10)], 0.95)}))
        errors.append(
            drop_curve(weights["down"], moment, columns, power, mean=mean if biased else None, grid=grids[-1])
        )
        assert torch.equal(
            price[mine].argsort(), percentile[mine].argsort()
        )  # inside a module: the same order
    whole = Modules(counts, torch.full((len(counts),), 36.0).double(), torch.zeros_like(counts))
    fine = [i / 200 for i in range(191)]
    curves = torch.stack(
        [torch.from_numpy(_interpolated(fine, g, e)) for g, e in zip(grids, errors, strict=True)]
    )
    wanted = by_curves(whole, 0.5 * COUNT * 36, curves, grid=fine)
    gone = price < price.sort().values[COUNT // 2]
    share = torch.bincount(labels[gone], minlength=len(counts)) / counts
    assert float((share - wanted).abs().max()) <= float((1.5 / counts).max())


def _interpolated(fine: list[float], grid: list[float], errors: Tensor) -> Any:
    return np.interp(fine, grid, errors.numpy())


def run(family: str, method: Any, tokens: Tensor, **options: Any) -> State:
    generator = torch.Generator().manual_seed(21)
    texts = (
        [torch.randint(3, 64, (4, 20), generator=generator) for _ in range(3)]
        if hasattr(method, "domains")
        else []
    )
    common: dict[str, Any] = {
        "pattern": UNITS, "seed": 0, "batch_size": 2, "propagation": "dense", "allocation": "global", "domains": texts,
    }  # fmt: skip
    decoder = options.pop("decoder", None) or random_decoder(family)
    return prune(decoder, method, tokens, [0.25], **common | options)


@pytest.mark.parametrize("shares", ["uniform", "curves"])
def test_every_family_loses_units_and_keeps_the_rest(family_name: str, shares: str, tokens: Tensor) -> None:
    decoder = random_decoder(family_name)
    dense = {site.name: site.linear.weight.clone() for site in decoder.sites()}
    method = replace(GPRUNE, shares=shares)
    state = run(family_name, method, tokens, decoder=decoder)
    assert check(decoder, state)["integrity/violations"] == 0
    assert any(site.mask.removed for _, site in state.sites())
    for name, weight in dense.items():
        keep = state.site(name).mask.keep()
        assert torch.equal(state.site(name).weight[keep], weight[keep])
    assert state_digest(run(family_name, method, tokens)) == state_digest(state)


@pytest.mark.parametrize("base", ["wanda_sp", "flap"])
def test_switched_off_it_is_its_base_metric_unit_for_unit(
    family_name: str, base: str, tokens: Tensor
) -> None:
    own = WandaSP("wanda_sp", 1, None) if base == "wanda_sp" else FLAP("flap", 1, None, "WIFV", 2.0)
    expected = run(family_name, own, tokens, allocation="uniform")
    found = run(family_name, replace(OFF, base=base), tokens, allocation="uniform")
    assert state_digest(found) == state_digest(expected)


def test_modules_are_told_with_what_ranked_them_and_what_they_lost() -> None:
    method = replace(PERCENTILE, reliability="all")
    importance, modules = method.study(view(inputs(dead=5)))
    gone = torch.zeros(COUNT, dtype=torch.bool)
    gone[importance.argsort()[:20]] = True
    dead, *rows = method.explain(modules, gone)["modules"]
    assert (dead["module"], dead["units"], dead["gone"], dead["V"]) == (-1, 1, 1, None)
    assert sum(row["units"] for row in rows) == COUNT - 1
    assert sum(row["gone"] for row in rows) == 19
    for row in rows:
        members = modules.labels == row["module"]
        assert row["share"] == row["gone"] / int(members.sum())
        assert row["metric"] == method.fallback_metric
    assert [row["V"] for row in rows] == sorted(row["V"] for row in rows)  # 0 is the least sensitive
    assert {
        row["metric"]
        for row in PERCENTILE.explain(replace(modules, switched=modules.switched & False), gone)["modules"][
            1:
        ]
    } == {PERCENTILE.base}
