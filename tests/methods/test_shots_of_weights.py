"""Single weights in several shots, and methods that update what stays: the promises on families with and without biases."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_conf import build
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.evaluation.integrity import check
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune, prune_ratios
from prunelab.passes.step import StepReport
from prunelab.pattern.base import Pattern
from prunelab.pattern.weights import NM, Unstructured
from prunelab.structures.state import State, open_state, save_state, state_digest


def run(decoder: Decoder, method: Any, tokens: Tensor, pattern: Pattern, **options: Any) -> State:
    options = {"schedule": [0.2, 0.5], "allocation": "global", "propagation": "dense"} | options
    return prune(
        decoder, method, tokens, options.pop("schedule"), pattern=pattern, seed=0, batch_size=2, **options
    )


@pytest.fixture
def tokens(tokens: Tensor) -> Tensor:
    return tokens[:3]


@pytest.mark.typical_families
@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)], ids=lambda pattern: pattern.label)
@pytest.mark.parametrize("name", ["surgeon_elements", "kobd", "lobd", "magnitude", "wanda"])
def test_promises(
    decoder: Decoder, family_name: str, name: str, pattern: Pattern, tokens: Tensor, tmp_path: Path
) -> None:
    method = build("method", name)
    dense = {site.name: site.linear.weight.clone() for site in decoder.sites()}
    biases = {site.name: site.linear.bias.clone() for site in decoder.sites() if site.linear.bias is not None}
    seen: list[tuple[StepReport, State]] = []
    state = run(
        decoder, method, tokens, pattern, on_step=lambda report, state: seen.append((report, state.clone()))
    )
    total = sum(row["total"] for row in seen[0][0].sites)
    assert [report.target for report, _ in seen] == [0.2, 0.5]
    for report, _ in seen:  # a group of n:m is the smallest step
        assert report.target - 4 / total <= report.achieved <= report.target
    for (_, before), (_, after) in itertools.pairwise(seen):
        for site in state.names:
            grown = after.site(site).mask.keep() & ~before.site(site).mask.keep()
            assert not grown.any()
    if pattern.group is not None:
        for _, site in state.sites():
            assert (site.mask.keep().view(-1, 4).sum(1) == 2).all()
    assert check(decoder, state)["integrity/violations"] == 0
    updated = name == "surgeon_elements"
    for site in decoder.sites():
        keep = state.site(site.name).mask.keep()
        same = torch.equal(site.linear.weight[keep], dense[site.name][keep])
        assert same or updated
        if site.linear.bias is not None:
            assert torch.equal(site.linear.bias, biases[site.name]) or updated

    save_state(seen[0][1], tmp_path / "shot.safetensors")
    resumed = run(
        random_decoder(family_name), method, tokens, pattern, start=open_state(tmp_path / "shot.safetensors"), start_step=1
    )  # fmt: skip
    assert state_digest(resumed) == state_digest(state)


def test_biases_make_up_too() -> None:
    """With every input constant, the bias alone can stand in for a weight that goes."""
    decoder, tokens = random_decoder("opt"), torch.randint(3, 64, (3, 20))
    before = {site.name: site.linear.bias.clone() for site in decoder.sites()}
    run(decoder, build("method", "surgeon_elements"), tokens, Unstructured())
    assert any(not torch.equal(site.linear.bias, before[site.name]) for site in decoder.sites())


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)], ids=lambda pattern: pattern.label)
def test_one_shot_of_one_scale_is_one_choice(pattern: Pattern, tokens: Tensor) -> None:
    """One shot over all layers is what select_global or n:m gives for the dense scores; shots go on from there."""
    method = build("method", "magnitude")
    one, two = (
        run(random_decoder("llama"), method, tokens, pattern, schedule=schedule)
        for schedule in ([0.5], [0.2, 0.5])
    )
    assert state_digest(one) == state_digest(two)  # no update: the lowest fifth is among the lowest half


def test_equal_shares_in_shots(tokens: Tensor) -> None:
    state = run(
        random_decoder("llama"), build("method", "wanda"), tokens, Unstructured(), allocation="uniform"
    )
    assert all(abs(site.mask.removed - site.mask.total / 2) <= 1 for _, site in state.sites())


@pytest.mark.parametrize("correlation", ["none", "independent", "grouped"])
def test_variants_choose_alike_in_one_shot_and_update_apart(correlation: str, tokens: Tensor) -> None:
    method = build("method", "surgeon_elements")
    full, other = (
        run(random_decoder("opt"), replace(method, correlation=kind), tokens, Unstructured(), schedule=[0.5])
        for kind in ("full", correlation)
    )
    for name in full.names:
        assert torch.equal(full.site(name).mask.keep(), other.site(name).mask.keep())
    assert state_digest(full) != state_digest(other)


def test_what_does_not_fit_is_told(tokens: Tensor) -> None:
    decoder, method = random_decoder("llama"), build("method", "surgeon_elements")
    for options, message in (
        ({"propagation": "pruned"}, "dense with"),
        ({"allocation": "by_kind"}, "by_kind"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(decoder, method, tokens, Unstructured(), **options)
    with pytest.raises(ConfigError, match="null without scores"):
        run(decoder, build("method", "sparsegpt"), tokens, Unstructured(), allocation="uniform")
    with pytest.raises(ConfigError, match="chosen over all layers"):
        prune_ratios(decoder, method, tokens, pattern=Unstructured(), ratios=[0.5], seed=0, batch_size=2)
    with pytest.raises(ConfigError, match=r"method\.correlation"):
        run(decoder, replace(method, correlation="summed"), tokens, Unstructured())
