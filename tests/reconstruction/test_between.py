"""Masks chosen between repairs: the order of the published code, its streams, windows, resumption and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.evaluation.integrity import check
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.models.stream import advance, open_stream
from prunelab.passes.between import Between
from prunelab.passes.collect import collect_block, load_needs
from prunelab.passes.shots import prune
from prunelab.pattern.weights import NM, RowsColumns, Unstructured
from prunelab.reconstruction.walk import reconstruct
from prunelab.structures.state import State, apply_state, open_state, save_state, state_digest

DEEP = {"num_hidden_layers": 3}
Make = Callable[..., Any]


@pytest.fixture
def tokens(tokens: Tensor) -> Tensor:
    """Two batches and a sequence."""
    return torch.cat([tokens, tokens.roll(1)])[:7]


@pytest.fixture
def between(option: Make) -> Make:
    """How blocks are pruned one at a time: to 50 % by Wanda, unless told otherwise."""

    def make(tokens: Tensor | None, method: str = "wanda", **options: Any) -> Between:
        settings = {"ratio": 0.5, "pattern": Unstructured(), "seed": 0, "batch_size": 3} | options
        return Between(option("method", method), tokens, **settings)

    return make


def run(decoder: Decoder, pruning: Any, tokens: Tensor, spec: Any, **options: Any) -> State:
    return reconstruct(decoder, pruning, tokens, spec, **{"seed": 0, "batch_size": 3} | options)


def kept(state: State, block: int) -> dict[str, Tensor]:
    return {name: state.site(name).mask.keep() for name in state.names if f".{block}." in name}


@pytest.mark.parametrize("name", ["layer", "block", "block_gp", "cross_block"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_the_first_blocks_mask_is_that_of_pruning_alone_and_later_ones_see_repairs(
    name: str, method: str, tokens: Tensor, spec: Make, between: Make, option: Make
) -> None:
    alone = prune(
        random_decoder("opt", **DEEP), option("method", method), tokens, [0.5], pattern=Unstructured(), seed=0, batch_size=3
    ).clone()  # fmt: skip
    decoder, rows = random_decoder("opt", **DEEP), list[dict[str, Any]]()
    found = run(
        decoder, between(tokens, method), tokens, spec(name), on_block=lambda report, _: rows.extend(report.blocks)
    )  # fmt: skip
    assert check(decoder, found)["integrity/masked"] == check(apply(alone), alone)["integrity/masked"]
    assert all(torch.equal(kept(found, 0)[site], keep) for site, keep in kept(alone, 0).items())
    same = all(torch.equal(kept(found, 2)[site], keep) for site, keep in kept(alone, 2).items())
    assert same == (method == "magnitude")  # which looks at nothing
    assert [row["block"] for row in rows] == [0, 1, 2]
    assert rows[-1]["error"] < rows[-1]["error_before"]


def apply(state: State) -> Decoder:
    decoder = random_decoder("opt", **DEEP)
    apply_state(decoder, state)
    return decoder


def test_statistics_are_those_of_repaired_blocks_on_the_masks_own_tokens(
    tokens: Tensor, spec: Make, between: Make, option: Make
) -> None:
    """Wanda's mask of the last block, chosen by hand on a model whose first blocks are the repaired ones."""
    others = (3 * tokens + 1) % 64
    found = run(random_decoder("opt", **DEEP), between(tokens), others, spec("block_gp")).clone()
    decoder = random_decoder("opt", **DEEP)
    stream = open_stream(decoder, tokens, 3)
    for index in range(2):
        apply_state(decoder, found, index)
        advance(decoder, index, stream)
    values = collect_block(decoder, 2, stream, load_needs(("input_norm",)), advancing=False)
    for site in decoder.sites(2):
        score = site.linear.weight.abs() * values[site.name]["input_norm"]
        keep = found.site(site.name).mask.keep()
        assert bool((score.masked_fill(keep, 0).amax(1) <= score.masked_fill(~keep, 1e9).amin(1)).all())
    more = torch.cat([others, others.flip(1)])
    longer = run(random_decoder("opt", **DEEP), between(tokens), more, spec("block_gp"))
    for site, keep in kept(found, 0).items():
        assert torch.equal(longer.site(site).mask.keep(), keep)  # what a repair fits to chooses no mask


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_a_block_is_pruned_once_when_it_enters_a_window(
    window: int, stride: int, tokens: Tensor, spec: Make, between: Make
) -> None:
    pruned: list[int] = []
    pruning = between(tokens, on_step=lambda report, _: pruned.append(report.block))
    settings = spec("block", window=window, stride=stride)
    decoder = random_decoder("llama", **DEEP)
    found = run(decoder, pruning, tokens, settings)
    assert pruned == [0, 1, 2]
    check(decoder, found)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(("name", "window", "stride"), [
    ("layer", 1, 1), ("block", 1, 1), ("cross_block", 2, 1), ("block", 2, 2), ("block", 3, 2),
])  # fmt: skip
def test_resume_after_any_step_is_one_go(
    method: str, name: str, window: int, stride: int, tokens: Tensor, spec: Make, between: Make, tmp_path: Any
) -> None:
    settings = spec(name) if name == "layer" else spec(name, window=window, stride=stride)
    parts: list[tuple[int, State, Any]] = []
    whole = run(
        random_decoder("opt", **DEEP), between(tokens, method), tokens, settings,
        on_block=lambda report, part: parts.append((report.done, part.clone(), report.blocks)),
    )  # fmt: skip
    assert not any("as_pruned" in site for site in whole.names)
    items: dict[str, Any] = {}
    others: dict[str, Tensor] = {}
    for at, (done, part, _) in enumerate(parts):
        items |= part.items
        others |= part.parameters
        save_state(State(whole.model, items, others), tmp_path / "start.safetensors")
        rows: list[Any] = []
        resumed = run(
            random_decoder("opt", **DEEP), between(tokens, method), tokens, settings,
            start=open_state(tmp_path / "start.safetensors"), start_block=done,
            on_block=lambda report, _, rows=rows: rows.append(report.blocks),
        )  # fmt: skip
        assert state_digest(resumed) == state_digest(whole)
        assert rows == [blocks for _, _, blocks in parts[at + 1 :]]  # error_before among them


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)])
def test_a_dense_model_stays_one_and_a_ratio_is_kept(
    pattern: Any, tokens: Tensor, spec: Make, between: Make, option: Make
) -> None:
    if pattern.fixed_ratio is None:
        none = run(random_decoder("llama"), between(tokens, ratio=0.0), tokens, spec("block"))
        dense = random_decoder("llama")
        assert all(torch.equal(none.site(site.name).weight, site.linear.weight) for site in dense.sites())
        assert not none.parameters
    found = run(random_decoder("llama"), between(tokens, pattern=pattern), tokens, spec("block"))
    for _, site in found.sites():
        keep = site.mask.keep()
        assert keep.sum() * 2 == keep.numel()


def test_an_allocation_gives_every_block_its_ratio(
    tokens: Tensor, spec: Make, between: Make, option: Make
) -> None:
    owl = option("allocation", "owl")
    alone = prune(
        random_decoder("opt", **DEEP), option("method", "magnitude"), tokens, [0.6], pattern=Unstructured(), seed=0,
        batch_size=3, allocation=owl,
    ).clone()  # fmt: skip
    pruning = between(tokens, "magnitude", ratio=0.6, allocation=owl)
    found = run(random_decoder("opt", **DEEP), pruning, tokens, spec("block"))
    for name, site in alone.sites():
        assert torch.equal(found.site(name).mask.keep(), site.mask.keep())


def test_what_has_no_choice_per_block_is_refused(
    tokens: Tensor, spec: Make, between: Make, option: Make
) -> None:
    for options, message in (
        ({"pattern": RowsColumns(), "ratio": 0.3}, r"reconstruction\.masks.*rows_columns"),
        ({"allocation": "global"}, r"reconstruction\.masks.*allocation=global"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(random_decoder("opt"), between(tokens, "magnitude", **options), tokens, spec("block"))
    with pytest.raises(ConfigError, match="calibration"):
        run(random_decoder("opt"), between(None), tokens, spec("block"))
