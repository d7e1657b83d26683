"""Every structured method on every family: the promises that no method may break."""

from __future__ import annotations

import ast
import itertools
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_conf import build, option, option_names
from torch import Tensor

from prunelab.evaluation.integrity import check
from prunelab.evaluation.ratios import ratios
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.passes.step import StepReport
from prunelab.pattern.base import SCOPES
from prunelab.pattern.weights import RowsColumns
from prunelab.statistic import CLASSES
from prunelab.structures.state import State, open_state, save_state, state_digest
from prunelab.structures.surgery import compact, compact_parameters

ROOT = Path(__file__).parents[2]


METHODS = [
    build("method", name)
    for name in option_names("method")
    if option("method", name)["_target_"].split(".")[-2] == name  # once per class, not per setting of it
    and "rows_columns" in build("method", name).supports
]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
SCHEDULE = [0.1, 0.3]


@pytest.fixture
def tokens(tokens: Tensor) -> Tensor:
    """Three sequences are enough here: a whole batch and a part of one."""
    return tokens[:3]


def run(
    decoder: Decoder, method: Any, tokens: Tensor, schedule: list[float] = SCHEDULE, **options: Any
) -> State:
    return prune(decoder, method, tokens, schedule, pattern=RowsColumns(), seed=0, batch_size=2, **options)


def same_bits(left: State, right: State) -> bool:
    return state_digest(left) == state_digest(right)


@pytest.mark.parametrize("name", option_names("method"))
def test_yaml_and_dataclass_agree_and_the_code_holds_no_defaults(name: str) -> None:
    method, config = build("method", name), option("method", name)
    names = [field.name for field in fields(method)]
    assert config["name"] == name
    assert {"_target_", *names} == set(config)
    assert names[:3] == ["name", "revision", "step"]
    assert all(field.default is MISSING and field.default_factory is MISSING for field in fields(method))


@pytest.mark.parametrize("name", option_names("method"))
def test_needs_and_supports_can_be_read_without_importing(name: str) -> None:
    module, _, cls = option("method", name)["_target_"].rpartition(".")
    source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
    body = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == cls).body
    values = {n.targets[0].id: ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign)}
    assert values["supports"] == build("method", name).supports
    assert set(values["needs"]) <= set(CLASSES)
    assert values["scope"] in SCOPES


@pytest.mark.methods_by_families
@each_method
def test_promises_on_every_family(
    decoder: Decoder, family_name: str, method: Any, tokens: Tensor, tmp_path: Path
) -> None:
    dense = {site.name: site.linear.weight.clone() for site in decoder.sites()}
    n_dense = decoder.n_parameters()
    seen: list[tuple[StepReport, State]] = []
    state = run(decoder, method, tokens, on_step=lambda report, state: seen.append((report, state.clone())))

    # targets: never above, within one structure, monotone; masks only grow
    largest = max(max(s.linear.in_features + 1, s.linear.out_features) for s in decoder.sites())
    total = sum(row["total"] for row in seen[0][0].sites)
    for report, _ in seen:
        assert report.target - largest / total < report.achieved <= report.target
        assert report.achieved == sum(row["removed"] for row in report.sites) / total
    for (_, before), (_, after) in itertools.pairwise(seen):
        for name in state.names:
            old, new = before.site(name).mask, after.site(name).mask
            assert not (new.keep_rows & ~old.keep_rows).any()
            assert not (new.joined_columns() & ~old.joined_columns()).any()

    # removed is exactly zero, kept is untouched unless the method updates
    counts = check(decoder, state)
    assert counts["integrity/violations"] == 0
    assert counts["integrity/masked"] == round(seen[-1][0].achieved * total)
    if method.name != "surgeon":
        for name, weight in dense.items():
            keep = state.site(name).mask.keep()
            assert torch.equal(state.site(name).weight[keep], weight[keep])

    # resume from the first shot's file = one go, bit for bit
    save_state(seen[0][1], tmp_path / "shot.safetensors")
    again = random_decoder(family_name)
    resumed = run(again, method, tokens, start=open_state(tmp_path / "shot.safetensors"), start_step=1)
    assert same_bits(resumed, state)

    # compact = masked, with fewer parameters
    measured = ratios(state, decoder)
    assert measured["ratio/weights"] == seen[-1][0].achieved
    assert 0 < measured["ratio/units"] < 1
    with torch.no_grad():
        masked = decoder.model(input_ids=tokens, use_cache=False).logits
    predicted = compact_parameters(state, decoder)
    compact(decoder, state)
    with torch.no_grad():
        small = decoder.model(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(small, masked, rtol=1e-5, atol=1e-5)
    assert decoder.n_parameters() == predicted < n_dense
    assert n_dense - predicted >= counts["integrity/masked"]


@pytest.mark.typical_families
@each_method
def test_ratio_zero_leaves_every_bit(decoder: Decoder, method: Any, tokens: Tensor) -> None:
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    for schedule in ([], [0.0]):
        state = run(decoder, method, tokens, schedule)
        assert all(torch.equal(value, before[name]) for name, value in decoder.model.state_dict().items())
        assert all(site.mask.removed == 0 for _, site in state.sites())


@each_method
def test_same_seed_same_bits_and_uniform_meets_every_layer(method: Any, tokens: Tensor) -> None:
    states = [run(random_decoder("opt"), method, tokens, [0.3], allocation="uniform") for _ in range(2)]
    assert same_bits(*states)
    for _, site in states[0].sites():
        rows, columns = site.mask.keep_rows.numel(), site.mask.n_columns
        assert 0.3 * site.mask.total - max(rows, columns) < site.mask.removed <= 0.3 * site.mask.total


def test_random_draws_differ_between_seeds_layers_and_shots() -> None:
    method = next(m for m in METHODS if m.name == "random")
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    masks = []
    for seed in (0, 1):
        state = prune(
            random_decoder("llama"),
            method,
            tokens,
            [0.4],
            pattern=RowsColumns(),
            seed=seed,
            batch_size=1,
            allocation="uniform",
        )
        masks.append([site.mask.keep() for _, site in state.sites()])
    assert not torch.equal(masks[0][0], masks[1][0])
    assert not torch.equal(masks[0][1], masks[0][2])  # k and v have the same shape


@each_method
def test_half_precision_keeps_its_dtype(method: Any, tokens: Tensor) -> None:
    decoder = random_decoder("llama", dtype=torch.bfloat16)
    state = run(decoder, method, tokens)
    check(decoder, state)
    assert {site.weight.dtype for _, site in state.sites()} == {torch.bfloat16}


def test_independent_correlation_runs_and_differs(tokens: Tensor) -> None:
    method = next(m for m in METHODS if m.name == "surgeon")
    full, independent = (
        run(random_decoder("opt"), replace(method, correlation=kind), tokens)
        for kind in ("full", "independent")
    )
    assert not same_bits(full, independent)
