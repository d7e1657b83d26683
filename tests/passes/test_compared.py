"""Statistics of several token sets at once: those of a walk over each half alone, at every block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.models.activation import Placement, open_shelf
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.between import Between
from prunelab.passes.collect import collect_all
from prunelab.passes.shots import prune
from prunelab.pattern.weights import Unstructured
from prunelab.stats.domain import Domain
from prunelab.stats.view import View
from prunelab.structures.state import state_digest

FREE = Unstructured()


@dataclass(frozen=True)
class Compare:
    """Scores as Wanda on the mask's text, and keeps what it was shown of the others."""

    name: str = "compare"
    revision: int = 1
    step: None = None
    seen: dict[str, tuple[Domain, ...]] = field(default_factory=dict)

    scope = "linear"
    needs = ("input_norm",)
    supports = ("unstructured",)
    within = "row"
    domains = 2

    def score(self, view: View) -> Tensor:
        self.seen[view.name] = view.value("domains")
        return view.W.abs().float() * view.input_norm


def other(n: int = 4) -> Tensor:
    return torch.randint(3, 64, (n, 20), generator=torch.Generator().manual_seed(11))


def run(decoder: Decoder, method: Any, tokens: Tensor | None, **options: Any) -> str:
    common: dict[str, Any] = {"pattern": FREE, "seed": 0, "batch_size": 2, "domains": [other()]}
    return state_digest(prune(decoder, method, tokens, [0.5], **common | options))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_every_half_is_walked_on_the_dense_model(family_name: str, allocation: str, tokens: Tensor) -> None:
    method = Compare()
    options: dict[str, Any] = {"propagation": "dense", "allocation": allocation}
    digest = run(random_decoder(family_name), method, tokens, **options)
    dense = random_decoder(family_name)
    for text, place in ((tokens, 0), (other(), 1)):
        for half in (0, 1):
            alone = collect_all(dense, text[half::2], ("input_norm",), 2)
            for name, domains in method.seen.items():
                found: Tensor = domains[place].halves[half]["input_norm"]
                assert torch.equal(found, alone[name]["input_norm"])
                assert domains[place].n_tokens[half] == text[half::2].numel()
    assert len(method.seen) > len(dense.blocks)
    again = Compare()
    alone_digest = run(random_decoder(family_name), again, tokens, **options | {"domains": [tokens]})
    assert alone_digest == digest  # this method's masks are of the mask's text alone


def test_streams_follow_the_pruned_weights(tokens: Tensor) -> None:
    method = Compare()
    decoder = random_decoder("llama")
    run(decoder, method, tokens, propagation="pruned")
    first, last = decoder.sites(0)[0].name, decoder.sites(1)[0].name
    pruned = random_decoder("llama")
    for site, own in zip(pruned.sites(0), decoder.sites(0), strict=True):
        site.linear.weight.data.copy_(own.linear.weight)
    for half in (0, 1):
        text = other()[half::2]
        dense = collect_all(random_decoder("llama"), text, ("input_norm",), 2)
        after = collect_all(pruned, text, ("input_norm",), 2)
        assert torch.equal(method.seen[first][1].halves[half]["input_norm"], dense[first]["input_norm"])
        assert torch.equal(method.seen[last][1].halves[half]["input_norm"], after[last]["input_norm"])


def test_block_by_block_between_repairs(tokens: Tensor) -> None:
    whole, between = Compare(), Compare()
    run(random_decoder("llama"), whole, tokens, propagation="pruned")
    decoder = random_decoder("llama")
    how = Between(between, tokens, 0.5, FREE, 0, 2, domains=[other()])
    with open_shelf(Placement("device"), decoder.dtype, decoder.device) as shelf:
        pruner = how.open(decoder, shelf)
        pruner.prune(0)
        pruner.prune(1)  # ahead of the stream: on a fork of it, over a dense block
    names = [site.name for site in decoder.sites(0) if site.name in between.seen]
    for name in names:
        for one, two in zip(whole.seen[name], between.seen[name], strict=True):
            assert torch.equal(one.halves[0]["input_norm"], two.halves[0]["input_norm"])
    dense = collect_all(decoder, other()[1::2], ("input_norm",), 2)
    for name in (site.name for site in decoder.sites(1) if site.name in between.seen):
        assert torch.equal(between.seen[name][1].halves[1]["input_norm"], dense[name]["input_norm"])


def test_a_walk_goes_on_where_it_stopped(tokens: Tensor) -> None:
    kept: list[Any] = []

    def keep(report: Any, state: Any) -> None:
        if report.block == 0:
            kept.append(state)

    whole = run(random_decoder("llama"), Compare(), tokens, propagation="dense", on_step=keep)
    rest = run(random_decoder("llama"), Compare(), tokens, propagation="dense", start=kept[0], start_step=1)
    assert rest == whole


def test_what_does_not_fit_is_told(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    with pytest.raises(ConfigError, match="1 or more token sets of other text with method=compare"):
        run(decoder, Compare(), tokens, domains=[])
    with pytest.raises(ConfigError, match="2 or more with domains"):
        run(decoder, Compare(), tokens, domains=[other(1)])
    with pytest.raises(ConfigError, match="a token set, to compare others with"):
        run(decoder, Compare(), None)

    class Alone(Compare):
        domains = 0

    with pytest.raises(ConfigError, match="none with method=compare"):
        run(decoder, Alone(), tokens)
