"""Pruning single weights on every family: exact counts, what stays untouched, statistics, resume, allocations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from by_conf import build, option_names
from torch import Tensor

from prunelab.allocation.owl import OWL
from prunelab.errors import ConfigError
from prunelab.evaluation.integrity import check
from prunelab.methods.facts import facts_of
from prunelab.models.activation import Placement
from prunelab.models.decoder import Decoder
from prunelab.models.inputs import groups
from prunelab.models.random import random_decoder
from prunelab.models.stream import advance, open_stream
from prunelab.passes.collect import collect_block, load_needs
from prunelab.passes.shots import prune, prune_ratios
from prunelab.passes.step import StepReport
from prunelab.pattern.base import default_stream
from prunelab.pattern.table import build_pattern
from prunelab.pattern.weights import Unstructured
from prunelab.sparsity.element import removed_in_matrix
from prunelab.sparsity.mask import Elementwise
from prunelab.structures.state import State, apply_state, open_state, save_state, state_digest

FREE = build_pattern("unstructured")


METHODS = [  # those that go block by block; the others: tests/methods/test_shots_of_weights.py
    method
    for name in option_names("method")
    if "unstructured" in (method := build("method", name)).supports
    and default_stream(Unstructured, facts_of(method), None) == "pruned"
]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
PLAIN = [method for method in METHODS if hasattr(method, "score")]


@pytest.fixture
def tokens(tokens: Tensor) -> Tensor:
    """A whole batch and a part of one."""
    return tokens[:3]


def run(decoder: Decoder, method: Any, tokens: Tensor | None, ratio: float = 0.5, **options: Any) -> State:
    settings = {"pattern": FREE, "seed": 0, "batch_size": 2} | options
    return prune(decoder, method, tokens, [ratio], **settings)


def keep(state: State, name: str) -> Tensor:
    mask = state.site(name).mask
    assert isinstance(mask, Elementwise)
    return mask.keep_weight


def same_bits(left: State, right: State) -> bool:
    return state_digest(left) == state_digest(right)


@each_method
def test_counts_zeros_and_kept_weights_on_every_family(decoder: Decoder, method: Any, tokens: Tensor) -> None:
    before = {name: value.clone() for name, value in decoder.model.named_parameters()}
    reports: list[StepReport] = []
    state = run(decoder, method, tokens, on_step=lambda report, _: reports.append(report))
    assert check(decoder, state)["integrity/violations"] == 0
    linear = {f"{site.name}.weight" for site in decoder.sites()}
    for name, value in decoder.model.named_parameters():
        assert name in linear or torch.equal(value, before[name])
    for site in decoder.sites():
        mask = keep(state, site.name)
        rows, columns = mask.shape
        if method.name in ("wanda", "random"):  # scores compete in rows
            assert set((~mask).sum(1).tolist()) == {columns // 2}
        else:
            assert int((~mask).sum()) == removed_in_matrix(rows * columns, 0.5)
        if hasattr(method, "score"):
            assert torch.equal(site.linear.weight[mask], before[f"{site.name}.weight"][mask])
    assert [report.block for report in reports] == list(range(len(decoder.blocks)))
    assert all(abs(report.achieved - 0.5) < 0.05 for report in reports)


@pytest.mark.typical_families
@pytest.mark.parametrize("shape", [(2, 4), (4, 8), (1, 4)], ids=str)
@each_method
def test_nm_in_full_coordinates(
    decoder: Decoder, method: Any, tokens: Tensor, shape: tuple[int, int]
) -> None:
    n, m = shape
    pattern = build_pattern("n:m", n=n, m=m)
    state = run(decoder, method, tokens, pattern=pattern, ratio=1 - n / m)
    for site in decoder.sites():
        kept = keep(state, site.name)
        assert kept.shape == site.linear.weight.shape
        assert set(kept.view(kept.shape[0], -1, m).sum(2).flatten().tolist()) == {n}
        assert not bool(site.linear.weight[~kept].any())


@each_method
@pytest.mark.parametrize("propagation", ["pruned", "dense"])
def test_resume_at_any_block_is_one_go(method: Any, propagation: str, tokens: Tensor, tmp_path: Path) -> None:
    parts: list[State] = []
    family = {"num_hidden_layers": 3}
    whole = run(
        random_decoder("opt", **family), method, tokens, propagation=propagation,
        on_step=lambda _, part: parts.append(part.clone()),
    )  # fmt: skip
    for done in (1, 2):
        start = State(whole.model, {k: v for part in parts[:done] for k, v in part.items.items()})
        save_state(start, tmp_path / "start.safetensors")
        fresh = random_decoder("opt", **family)
        resumed = run(
            fresh, method, tokens, propagation=propagation,
            start=open_state(tmp_path / "start.safetensors"), start_step=done,
        )  # fmt: skip
        assert same_bits(resumed, whole)
        assert torch.equal(fresh.site(whole.names[-1]).linear.weight, whole.site(whole.names[-1]).weight)


def test_one_threshold_is_one_step_and_a_finished_one_is_not_run_again(tokens: Tensor) -> None:
    steps: list[StepReport] = []
    states: list[State] = []
    settings: dict[str, Any] = {"allocation": "global", "propagation": "dense"}

    def note(report: StepReport, state: State) -> None:
        steps.append(report)
        states.append(state.clone())

    whole = run(random_decoder("opt"), build("method", "wanda"), tokens, **settings, on_step=note)
    assert [(step.shot, step.block) for step in steps] == [(1, None)]
    resumed = run(
        random_decoder("opt"),
        build("method", "wanda"),
        tokens,
        **settings,
        start=states[0],
        start_step=1,
        on_step=note,
    )
    assert len(steps) == 1
    assert same_bits(resumed, whole)


@pytest.mark.parametrize("allocation", ["uniform", "global", OWL("owl", 1, 2.0, 0.08)], ids=str)
@each_method
def test_where_states_wait_changes_no_bit(
    method: Any, allocation: Any, tokens: Tensor, tmp_path: Path
) -> None:
    if allocation == "global" and not hasattr(method, "score"):
        return
    settings = {"allocation": allocation, "propagation": "dense" if allocation == "global" else "pruned"}
    expected = run(random_decoder("qwen2"), method, tokens, **settings)
    for placement in (Placement("disk", None, tmp_path), Placement("auto", 1e-9, tmp_path), Placement("ram")):
        found = run(random_decoder("qwen2"), method, tokens, placement=placement, **settings)
        assert same_bits(found, expected)
    assert not list(tmp_path.iterdir())


@each_method
def test_ratio_zero_leaves_every_bit(method: Any, tokens: Tensor) -> None:
    decoder = random_decoder("gemma3")
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    state = run(decoder, method, tokens, ratio=0.0)
    assert all(torch.equal(value, before[name]) for name, value in decoder.model.state_dict().items())
    assert all(site.mask.removed == 0 for _, site in state.sites())


@each_method
def test_many_ratios_from_one_pass_are_the_dense_runs(method: Any, tokens: Tensor) -> None:
    decoder = random_decoder("qwen3")
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    found = prune_ratios(
        decoder, method, tokens, pattern=FREE, ratios=[0.0, 0.3, 0.5, 0.7], seed=0, batch_size=2
    )
    assert all(torch.equal(value, before[name]) for name, value in decoder.model.state_dict().items())
    for ratio, state in zip([0.0, 0.3, 0.5, 0.7], found, strict=True):
        alone = run(random_decoder("qwen3"), method, tokens, ratio=ratio, propagation="dense")
        assert same_bits(state, alone)


@each_method
def test_batches_change_statistics_by_rounding_only(method: Any, tokens: Tensor) -> None:
    states = [run(random_decoder("llama"), method, tokens, batch_size=size) for size in (1, 3)]
    for name in states[0].names:
        differ = keep(states[0], name) != keep(states[1], name)
        assert float(differ.float().mean()) < 0.01


def test_statistics_are_those_of_the_layers_inputs(decoder: Decoder, tokens: Tensor) -> None:
    stream = open_stream(decoder, tokens, 2)
    caught: dict[str, list[Tensor]] = {}
    handles = [
        site.linear.register_forward_pre_hook(
            lambda _, args, name=site.name: caught.setdefault(name, []).append(
                args[0].reshape(-1, args[0].shape[-1])
            )
        )
        for site in decoder.sites(0)
    ]
    everything = slice(None)
    before = stream.read(everything).clone()
    advance(decoder, 0, stream)
    after = stream.read(everything).clone()
    for handle in handles:
        handle.remove()
    for advancing in (False, True):
        stream.write(everything, before)
        needs = load_needs(("input_norm", "input_gram"))
        values = collect_block(decoder, 0, stream, needs, advancing=advancing)
        expected = after if advancing else before
        assert torch.equal(stream.read(everything), expected)
        for group in groups(decoder, 0):
            for site in group:  # every layer of the group sees this very input
                x = torch.cat(caught[site.name])
                assert values[site.name]["input_gram"] is values[group[0].name]["input_gram"]
                torch.testing.assert_close(values[site.name]["input_norm"], x.square().mean(0).sqrt())
                torch.testing.assert_close(values[site.name]["input_gram"].matrix, x.T @ x / x.shape[0])
    assert not any(module._forward_pre_hooks for module in decoder.blocks.modules())


def test_wanda_by_hand_and_magnitude_by_hand(tokens: Tensor) -> None:
    dense = random_decoder("llama")
    weights = {site.name: site.linear.weight.clone() for site in dense.sites()}
    stream = open_stream(dense, tokens, 3)
    values = collect_block(dense, 0, stream, load_needs(("input_norm",)), advancing=False)
    wanda = run(random_decoder("llama"), build("method", "wanda"), tokens, batch_size=3)
    for site in dense.sites(0):
        score = weights[site.name].abs() * values[site.name]["input_norm"]
        order = score.argsort(dim=1, stable=True)[:, : score.shape[1] // 2]
        mask = torch.ones_like(score, dtype=torch.bool).scatter_(1, order, False)
        assert torch.equal(keep(wanda, site.name), mask)
    magnitude = run(random_decoder("llama"), build("method", "magnitude"), None)
    for name, weight in weights.items():
        order = weight.abs().flatten().argsort(stable=True)[: weight.numel() // 2]
        mask = torch.ones(weight.numel(), dtype=torch.bool)
        mask[order] = False
        assert torch.equal(keep(magnitude, name).flatten(), mask)


@pytest.mark.parametrize("method", PLAIN, ids=lambda method: method.name)
def test_within_replaces_the_methods_own_rule(method: Any, tokens: Tensor) -> None:
    for within in ("row", "matrix"):
        pattern = build_pattern("unstructured", within=within)
        state = run(random_decoder("opt"), method, tokens, pattern=pattern)
        for name in state.names:
            counts = set((~keep(state, name)).sum(1).tolist())
            assert (len(counts) == 1) == (within == "row")


@pytest.mark.parametrize("method", PLAIN, ids=lambda method: method.name)
def test_global_is_one_threshold_over_all_layers(method: Any, tokens: Tensor) -> None:
    state = run(random_decoder("opt"), method, tokens, allocation="global", propagation="dense")
    total = sum(site.mask.total for _, site in state.sites())
    assert sum(site.mask.removed for _, site in state.sites()) == removed_in_matrix(total, 0.5)
    if method.name == "magnitude":
        dense = {site.name: site.linear.weight for site in random_decoder("opt").sites()}
        gone = max(float(dense[name][~keep(state, name)].abs().max()) for name in state.names)
        kept = min(float(dense[name][keep(state, name)].abs().min()) for name in state.names)
        assert gone <= kept


def test_owl_keeps_the_mean_ratio_and_gives_outliers_more(tokens: Tensor) -> None:
    owl = OWL("owl", 1, 2.0, 0.08)
    reports: list[StepReport] = []
    decoder = random_decoder("llama", num_hidden_layers=3)
    run(
        decoder, build("method", "wanda"), tokens, ratio=0.6, allocation=owl,
        on_step=lambda report, _: reports.append(report),
    )  # fmt: skip
    ratios = [report.target for report in reports]
    assert sum(ratios) / 3 == pytest.approx(0.6)
    assert max(ratios) - min(ratios) == pytest.approx(0.16)


@each_method
@pytest.mark.parametrize("ratio", [0.37, 0.5, 0.701])
def test_every_layer_loses_what_was_asked_to_one_weight(method: Any, ratio: float, tokens: Tensor) -> None:
    state = run(random_decoder("opt"), method, tokens, ratio=ratio)
    for _, site in state.sites():
        assert site.mask.removed == removed_in_matrix(site.mask.total, ratio)
    published = run(
        random_decoder("opt"), method, tokens, ratio=ratio, pattern=Unstructured(rounding="published")
    )
    if ratio == 0.37 and method.name == "wanda":
        assert published.site(published.names[0]).mask.removed > state.site(state.names[0]).mask.removed


@each_method
def test_bfloat16_keeps_its_dtype(method: Any, tokens: Tensor) -> None:
    decoder = random_decoder("llama", dtype=torch.bfloat16)
    state = run(decoder, method, tokens)
    check(decoder, state)
    assert {site.weight.dtype for _, site in state.sites()} == {torch.bfloat16}
    fresh = random_decoder("llama", dtype=torch.bfloat16)
    apply_state(fresh, state)
    check(fresh, state)


def test_what_does_not_fit_together_is_named(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    wanda, sparsegpt, magnitude = (
        build("method", "wanda"),
        build("method", "sparsegpt"),
        build("method", "magnitude"),
    )
    two_four = build_pattern("2:4")
    for method, options, message in (
        (wanda, {"ratio": 1.0}, r"schedule=.*ratio < 1"),
        (wanda, {"pattern": two_four, "ratio": 0.6}, r"0\.5, what 2:4 removes"),
        (wanda, {"pattern": build_pattern("3:7"), "ratio": 4 / 7}, r"sparsity\.m"),
        (wanda, {"propagation": "both"}, r"pruned \| dense"),
        (wanda, {"allocation": "layers"}, r"uniform \| global \| by_kind \| owl"),
        (wanda, {"allocation": "global"}, "dense with allocation=global"),
        (wanda, {"pattern": two_four, "allocation": OWL("owl", 1, 5.0, 0.08)}, "n:m fixes"),
        (sparsegpt, {"allocation": "global", "propagation": "dense"}, "without scores to compare"),
        (sparsegpt, {"pattern": build_pattern("unstructured", within="row")}, "in its own way"),
        (wanda, {"start_step": 1}, "start"),
        (wanda, {"start_step": 9}, "number of steps"),
        (build("method", "kobd"), {}, "dense with method=kobd"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(decoder, method, tokens, **options)
    with pytest.raises(ConfigError, match="calibration"):
        run(decoder, wanda, None)
    run(decoder, magnitude, None)
