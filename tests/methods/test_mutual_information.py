"""Mutual information on models: planted copies go and cost nothing, dead neurons first, and all settings run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_conf import build
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.information.explain import removed_rows, spectrum
from prunelab.information.search import Removals
from prunelab.methods.mutual_information import MutualInformation
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.base import HEADS, NEURONS
from prunelab.pattern.units import Units
from prunelab.stats.gram import Gram
from prunelab.stats.input_moments import Moments
from prunelab.stats.unit_view import Member, UnitView
from prunelab.structures.state import State, state_digest
from prunelab.structures.units import trace_units

METHOD: MutualInformation = build("method", "mutual_information")
QUICK = replace(METHOD, n_samples=48, bw_neurons=4)  # the width is sought on few neurons and samples


def _prune(decoder: Decoder, method: Any, tokens: Tensor, ratio: float, **options: Any) -> State:
    pattern = Units(
        kinds=options.pop("kinds", (NEURONS,)),
        counts="units",
        compensation=options.pop("compensation", "merge"),
    )
    options = {"seed": 0, "batch_size": 2, "allocation": "uniform", "propagation": "dense", **options}
    return prune(decoder, method, tokens, [ratio], pattern=pattern, **options)


def _members(decoder: Decoder, block: int) -> dict[str, Member]:
    return {member.role: member for _, member in trace_units(decoder, block, (NEURONS,))[NEURONS]}


def _awake(family: str) -> Decoder:
    """A random decoder whose neurons are not silent, which in opt some of a random one are."""
    decoder = random_decoder(family)
    for block in range(len(decoder.blocks)):
        up = _members(decoder, block)["up"]
        if up.bias is not None:
            up.bias.fill_(2.0)
    return decoder


def _plant(decoder: Decoder, copy: int, of: int) -> None:
    """Make neuron ``copy`` of every block say the same as ``of``: a multiple where the family's function allows one."""
    factor = -2.5 if decoder.family.name != "opt" else 2.5
    for block in range(len(decoder.blocks)):
        members = _members(decoder, block)
        gated = "gate" in members
        for role in ("gate", "up"):
            if role not in members:
                continue
            member = members[role]
            by = factor if role == "up" and (gated or decoder.family.name == "opt") else 1.0
            row, other = int(member.index[copy]), int(member.index[of])
            member.W[row] = by * member.W[other]
            if member.bias is not None:
                member.bias[row] = by * member.bias[other]


def _logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.model(input_ids=tokens, use_cache=False).logits


def _gone(decoder: Decoder, state: State, block: int) -> list[int]:
    """Numbers of the neurons that were removed from a block."""
    down = _members(decoder, block)["down"]
    return (~state.site(down.site).mask.keep_columns).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("merging", ["pairwise", "joint"])
def test_a_planted_copy_goes_first_and_merging_it_leaves_the_logits_as_they_were(
    family_name: str, merging: str, tokens: Tensor
) -> None:
    decoder = _awake(family_name)
    with torch.no_grad():
        _plant(decoder, 5, 2)
    before = _logits(decoder, tokens)
    width = len(_members(decoder, 0)["down"].index)
    state = _prune(decoder, replace(QUICK, merging=merging), tokens, 1 / width)
    for block in range(len(decoder.blocks)):
        assert _gone(decoder, state, block) in ([2], [5])
    torch.testing.assert_close(_logits(decoder, tokens), before, rtol=1e-4, atol=1e-5)
    bare = _awake(family_name)
    with torch.no_grad():
        _plant(bare, 5, 2)
    _prune(bare, QUICK, tokens, 1 / width, compensation="none")
    assert float((_logits(bare, tokens) - before).abs().max()) > 1e-4


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("compensation", ["merge", "bias"])
def test_silent_and_constant_neurons_go_first_and_their_mean_makes_up_for_them(
    family: str, compensation: str, tokens: Tensor
) -> None:
    decoder = _awake(family)
    dead = [1, 6]
    with torch.no_grad():
        for block in range(len(decoder.blocks)):
            up = _members(decoder, block)["up"]
            up.W[dead] = 0
            if up.bias is not None:
                up.bias[1], up.bias[6] = 0.7, -0.7  # constant, and silent after relu
    before = _logits(decoder, tokens)
    width = len(_members(decoder, 0)["down"].index)
    state = _prune(decoder, QUICK, tokens, 2 / width, compensation=compensation)
    assert [_gone(decoder, state, block) for block in range(2)] == [dead, dead]
    torch.testing.assert_close(_logits(decoder, tokens), before, rtol=1e-4, atol=1e-5)


SETTINGS = [
    ("mutual_information", {}),
    ("mi_fast", {}),
    ("mi_paper", {"n_samples": 24, "max_trials": 200}),
    ("mutual_information", {"most": 0.1}),
    ("mutual_information", {"search": "cluster", "n_clusters": 3}),
    ("mutual_information", {"search": "cluster", "victim": "central"}),
    ("mutual_information", {"search": "random_pairs", "victim": "central", "floor_deviations": 3.0}),
    ("mutual_information", {"victim": "lower_entropy", "normalize": "min_entropy", "null_draws": 2}),
    ("mutual_information", {"victim": "central", "quantile": None, "threshold": 0.2, "precision": "float64"}),
    ("mutual_information", {"bandwidth": "alignment", "standardize": False, "clip": 6.0}),
    ("mutual_information", {"bandwidth": "silverman", "floor_deviations": 3.0}),
    ("mutual_information", {"bandwidth": "fixed", "width": 0.4}),
    ("mutual_information", {"merging": "joint", "unmerged": "nothing"}),
]


@pytest.mark.parametrize(("name", "fields"), SETTINGS, ids=lambda value: str(value))
def test_every_setting_runs_and_meets_its_ratio(name: str, fields: dict[str, Any], tokens: Tensor) -> None:
    decoder = random_decoder("opt")
    state = _prune(decoder, build("method", name, **fields), tokens, 0.25, batch_size=5)
    width = len(_members(decoder, 0)["down"].index)
    assert [len(_gone(decoder, state, block)) for block in range(2)] == [width // 4, width // 4]
    assert bool(torch.isfinite(_logits(decoder, tokens)).all())


@pytest.mark.parametrize("search", ["all_pairs_greedy", "random_pairs"])
def test_the_same_seed_gives_the_same_bits_whatever_the_batch(search: str, tokens: Tensor) -> None:
    method = replace(QUICK, search=search, victim="random", floor_deviations=3.0)
    found = [
        state_digest(_prune(random_decoder("opt"), method, tokens, 0.25, batch_size=size, seed=seed))
        for size, seed in ((2, 0), (5, 0), (5, 1))
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("allocation", "merging"), [("uniform", "pairwise"), ("global", "joint")])
def test_heads_are_vectors_whose_mean_is_given_or_all_of_them_jointly(
    allocation: str, merging: str, tokens: Tensor
) -> None:
    decoder = random_decoder("llama")
    state = _prune(
        decoder,
        replace(METHOD, merging=merging, min_r2=0.0),
        tokens,
        0.5,
        kinds=(NEURONS, HEADS),
        allocation=allocation,
    )
    counts = [len(_gone(decoder, state, block)) for block in range(2)]
    assert min(counts) > 0
    removed = sum(site.mask.removed for _, site in state.sites())
    assert removed > 0
    assert bool(torch.isfinite(_logits(decoder, tokens)).all())


def test_several_shots_go_on_from_what_is_left(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    pattern = Units(kinds=(NEURONS,), counts="units", compensation="merge")
    state = prune(
        decoder, METHOD, tokens, [0.2, 0.4], pattern=pattern, seed=0, batch_size=2, allocation="global",
        propagation="dense",
    )  # fmt: skip
    width = len(_members(decoder, 0)["down"].index)
    assert sum(len(_gone(decoder, state, block)) for block in range(2)) == int(0.4 * 2 * width)


def _view(Z: Tensor, seed: int = 0) -> UnitView:
    m = Z.shape[1]
    W = torch.randn(3, m, generator=torch.Generator().manual_seed(1))
    output = Member("down", "a.down", W, None, 1, torch.arange(m)[:, None])
    moments = Moments(Z.mean(0), Z.var(0))
    values = {"input_samples": Z, "input_moments": moments, "input_gram": Gram(Z.T @ Z / len(Z), "a.down")}
    generator = torch.Generator().manual_seed(seed)
    return UnitView(0, NEURONS, (output,), torch.ones(m, dtype=torch.bool), generator, {"a.down": values})


def test_importance_orders_dead_redundant_and_other_units_and_the_study_says_why() -> None:
    Z = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    Z[:, 3] = 2.0
    Z[:, 7] = -Z[:, 4]
    Z[:, 9] = Z[:, 1] + 0.2 * Z[:, 9]
    view = _view(Z)
    importance, study = replace(METHOD, floor_deviations=6.0).study(view)
    order = importance.argsort().tolist()
    assert order[0] == 3
    assert order[1] in (4, 7)
    assert order[2] in (1, 9)
    redundant = importance < 0
    assert redundant.nonzero()[:, 0].tolist() == sorted(order[:3])
    assert bool((importance[~redundant] > 0).all())
    found = study.removals
    assert found.order.tolist() == order[:3]
    assert found.shortfall == 8  # 11 could go, 3 are redundant
    assert float(found.value[1]) == pytest.approx(1, abs=1e-4)
    assert found.sign[1:].tolist() == [-1, 1]
    assert float(study.nearest[4]) == pytest.approx(1, abs=1e-4)
    assert study.floor is not None
    assert study.floor < float(found.value[-1])
    assert study.n_samples == 200
    # the others go by how much they move the output
    norm = view.output.W.norm(dim=0) * Z.std(0, correction=0)
    rest = [x for x in range(12) if x not in order[:3]]
    assert order[3:] == sorted(rest, key=lambda x: float(norm[x]))


def test_each_removed_unit_is_told_with_its_partner_and_the_layer_with_its_spectrum() -> None:
    Z = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    Z[:, 3] = 2.0
    Z[:, 7] = -Z[:, 4]
    Z[:, 9] = Z[:, 1] + 0.2 * Z[:, 9]
    method = replace(METHOD, floor_deviations=6.0)
    importance, study = method.study(_view(Z))
    order = importance.argsort().tolist()
    gone = torch.zeros(12, dtype=torch.bool)
    gone[order[:4]] = True  # the dead one, two redundant ones, and one that goes by its norm
    tables = method.explain(study, gone)
    dead, opposite, like, other = tables["removed"]
    assert [row["unit"] for row in tables["removed"]] == order[:4]
    assert (dead["partner"], dead["nmi"], dead["reason"]) == (None, None, "dead")
    assert {opposite["unit"], opposite["partner"]} == {4, 7}
    assert opposite["nmi"] == pytest.approx(1, abs=1e-4)
    assert (opposite["sign"], like["sign"]) == (-1, 1)
    assert opposite["r2"] == pytest.approx(1, abs=1e-4)
    assert opposite["into"] == opposite["partner"]
    assert (other["partner"], other["nmi"]) == (None, None)
    assert other["reason"].startswith("norm")
    (layer,) = tables["redundancy"]
    assert [layer[key] for key in ("units", "gone", "redundant", "samples")] == [12, 4, 3, 200]
    assert study.width is not None
    assert (layer["rule"], layer["sigma"], layer["floor"]) == (
        study.width.rule,
        study.width.sigma,
        study.floor,
    )
    known = study.nearest[[x for x in range(12) if x != 3]]
    assert layer["q0"] == float(known.min())
    assert layer["q50"] == pytest.approx(float(known.median()))
    assert layer["q100"] == pytest.approx(1, abs=1e-4)


def test_a_partner_that_goes_as_well_hands_over_to_its_own() -> None:
    order, partner = torch.tensor([0, 1]), torch.tensor([1, 2])
    found = Removals(order, partner, torch.tensor([0.9, 0.8]), torch.tensor([1.0, math.nan]), torch.tensor([1, -1]),
                     ("lower_norm", "lower_norm"), 0, None)  # fmt: skip
    first, second = removed_rows(found, torch.tensor([True, True, False]))
    assert (first["partner"], first["into"]) == (1, 2)
    assert (second["partner"], second["into"], second["r2"]) == (2, 2, None)
    assert spectrum(torch.full((3,), math.nan), found)["q50"] is None


def test_what_goes_is_merged_into_what_stays_and_never_into_what_goes() -> None:
    Z = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    Z[:, 1], Z[:, 2] = 2 * Z[:, 0] + 1, -3 * Z[:, 0]
    view = _view(Z)
    _, study = METHOD.study(view)
    assert set(study.removals.order[:2].tolist()) < {0, 1, 2}
    for count in (1, 2):
        gone = study.removals.order[:count]
        keep = torch.ones(6, dtype=torch.bool)
        keep[gone] = False
        W, bias = METHOD.merge(study, view.output, view.values["a.down"], keep)
        assert bias is not None
        assert not W[:, gone].any()
        expected = Z.double() @ view.output.W.double().T
        torch.testing.assert_close(Z.double() @ W.T + bias, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 0.3}, "method.width"),
        ({"bandwidth": "fixed"}, "method.width"),
        ({"threshold": 0.5}, "method.quantile"),
        ({"search": "random_pairs"}, "method.floor_deviations"),
        ({"estimator": "gaussian", "victim": "lower_entropy"}, "method.victim"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(METHOD, **fields).study(_view(torch.randn(8, 3)))
