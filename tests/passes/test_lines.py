"""The structured pass: dead coupling, K-OBD as one shot without update, schedules, reports, errors."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from prunelab.distributed.group import ALONE
from prunelab.errors import ConfigError
from prunelab.methods.kobd import KOBD
from prunelab.methods.magnitude import Magnitude
from prunelab.methods.surgeon import Surgeon
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.lines import Lines
from prunelab.passes.shots import Walk
from prunelab.passes.shots import prune as prune_pattern
from prunelab.passes.source import Held
from prunelab.passes.step import StepReport
from prunelab.pattern.weights import RowsColumns
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Elementwise, Structured
from prunelab.stats.gram import Gram
from prunelab.structures.layout import attention_rows, heads_of
from prunelab.structures.state import State, read_state, state_digest

SURGEON = Surgeon("surgeon", 1, 0.05, 0.01, 0.01, "full", 2000, 0.1, 200)
EPSILON = 1e-9
prune = partial(prune_pattern, pattern=RowsColumns())


class Layers:
    """Linear layers that pruning takes for a model of one block."""

    def __init__(self, sites: list[LinearSite]) -> None:
        self._sites, self.blocks = tuple(sites), [None]

    def sites(self, block: int | None = None) -> tuple[LinearSite, ...]:
        return self._sites


def removed(state: State, name: str) -> tuple[list[int], list[int]]:
    mask = state.site(name).mask
    return (~mask.keep_rows).nonzero()[:, 0].tolist(), (~mask.keep_columns).nonzero()[:, 0].tolist()


def start(decoder: Decoder, path: str, rows: list[int], columns: list[int]) -> State:
    """Remove rows and columns of one layer of block 0 by hand."""
    masks = {site.name: masking.full(site.linear.weight, site.linear.bias) for site in decoder.sites()}
    site = next(site for site in decoder.sites(0) if site.path == path)
    mask = masks[site.name]
    mask.keep_rows[rows] = False
    mask.keep_columns[columns] = False
    masking.apply(mask, site.linear.weight, site.linear.bias)
    return read_state(decoder, masks)


def one_more(decoder: Decoder, state: State, path: str, n_dead: int, tokens: Tensor, method=SURGEON) -> State:
    """One more shot whose target leaves room for the dead structures of layer ``path`` and nothing else."""
    total = sum(site.mask.total for _, site in state.sites())
    linear = next(site.linear for site in decoder.sites(0) if site.path == path)
    gone = sum(site.mask.removed for _, site in state.sites())
    extra = n_dead * (linear.in_features + (linear.bias is not None))
    reports: list[StepReport] = []
    state = prune(
        decoder,
        method,
        tokens,
        [(gone + extra) / total + EPSILON],
        seed=0,
        batch_size=2,
        start=state,
        on_step=lambda report, _: reports.append(report),
    )
    assert reports[0].threshold == 0
    return state


@pytest.mark.typical_families
@pytest.mark.parametrize("method", [SURGEON, KOBD("kobd", 1, None)], ids=lambda method: method.name)
def test_a_column_gone_in_the_reader_takes_the_rows_of_its_writers(
    decoder: Decoder, tokens: Tensor, method
) -> None:
    writers, reader = decoder.family.mlp
    state = start(decoder, reader, [], [3])
    total_rows = len(writers)
    state = one_more(decoder, state, writers[0], total_rows, tokens, method)
    prefix = f"{decoder.family.blocks}.0."
    for writer in writers:
        assert removed(state, prefix + writer) == ([3], [])
    assert removed(state, prefix + reader) == ([], [3])


def test_a_row_gone_in_fc1_takes_the_column_of_fc2(tokens: Tensor) -> None:
    decoder = random_decoder("opt")
    state = start(decoder, "fc1", [5], [])
    total = sum(site.mask.total for _, site in state.sites())
    gone = sum(site.mask.removed for _, site in state.sites())
    width = decoder.site("model.decoder.layers.0.fc2").linear.out_features
    target = (gone + width) / total + EPSILON
    state = prune(decoder, SURGEON, tokens, [target], seed=0, batch_size=2, start=state)
    assert removed(state, "model.decoder.layers.0.fc2") == ([], [5])
    assert removed(state, "model.decoder.layers.0.fc1") == ([5], [])


def test_output_columns_gone_take_their_value_row_and_the_other_way_round(
    decoder: Decoder, family_name: str, tokens: Tensor
) -> None:
    _, _, value, output = decoder.family.attention
    prefix = f"{decoder.family.blocks}.0."
    linears = {site.path: site.linear for site in decoder.sites(0)}
    n_q, n_kv, width = heads_of(decoder, 0)
    row = int(
        attention_rows(decoder.family.layout, n_q, n_kv, width)[2][0, 2]
    )  # channel 2 of the first value head
    repeat = n_q // n_kv
    readers = [head * width + 2 for head in range(repeat)]
    state = one_more(decoder, start(decoder, output, [], readers), value, 1, tokens)
    assert removed(state, prefix + value) == ([row], [])
    assert removed(state, prefix + output) == ([], readers)

    fresh = random_decoder(family_name)
    state = start(fresh, value, [row], [])
    extra = repeat * linears[output].out_features + sum(site.mask.removed for _, site in state.sites())
    target = extra / sum(site.mask.total for _, site in state.sites()) + EPSILON
    state = prune(fresh, SURGEON, tokens, [target], seed=0, batch_size=2, start=state)
    assert removed(state, prefix + output) == ([], readers)


def test_methods_without_needs_need_no_tokens_and_others_say_so() -> None:
    state = prune(random_decoder("opt"), Magnitude("magnitude", 1, None), None, [0.2], seed=0, batch_size=1)
    assert sum(site.mask.removed for _, site in state.sites()) > 0
    with pytest.raises(ConfigError, match=r"calibration=None.*token set"):
        prune(random_decoder("opt"), SURGEON, None, [0.2], seed=0, batch_size=1)


def test_one_shot_kobd_equals_obd_by_hand_and_keeps_every_bit(tokens: Tensor) -> None:
    decoder = random_decoder("qwen2")
    dense = {site.name: (site.linear.weight.clone(), site.linear.bias) for site in decoder.sites()}
    state = prune(decoder, KOBD("kobd", 1, None), tokens, [0.4], seed=0, batch_size=2)
    for name, site in state.sites():
        weight = dense[name][0].clone()
        masking.apply(site.mask, weight, None)
        assert torch.equal(site.weight, weight)


def test_bias_columns_that_are_zero_go_first_and_count(tokens: Tensor) -> None:
    decoder = random_decoder("opt")
    for site in decoder.sites():
        site.linear.bias.zero_()
    state = prune(decoder, SURGEON, tokens, [0.1], seed=0, batch_size=2)
    assert all(site.mask.keep_bias is False for _, site in state.sites())


def test_reports_and_progress_tell_what_happened(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    reports: list[StepReport] = []
    rows: list[dict] = []
    prune(
        decoder,
        SURGEON,
        tokens,
        [0.1, 0.2],
        seed=0,
        batch_size=5,
        on_step=lambda report, state: reports.append(report),
        progress=rows.append,
    )
    assert [(r.shot, r.target) for r in reports] == [(1, 0.1), (2, 0.2)]
    assert all(r.seconds > 0 and r.threshold > 0 for r in reports)
    assert list(reports[0].sites[0]) == [
        "site", "block", "path", "rows", "columns", "rows_removed", "columns_removed", "removed", "total",
    ]  # fmt: skip
    assert [row["phase"] for row in rows if row["shot"] == 1] == (
        ["forward"] * 2 + ["backward"] * 2 + ["costs"] * 2 + ["update"] * 2
    )
    assert {row["shots"] for row in rows} == {2}


def test_shared_inverses_are_paid_once_per_input(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunelab.linalg import factor

    calls: list[str] = []
    original = factor.inverse_diagonal
    monkeypatch.setattr(factor, "inverse_diagonal", lambda m, what: calls.append(what) or original(m, what))
    prune(random_decoder("llama"), SURGEON, tokens, [0.1], seed=0, batch_size=5)
    assert sum("input" in call for call in calls) == 2 * 4
    assert sum("output" in call for call in calls) == 2 * 7


def test_batch_size_does_not_decide(tokens: Tensor) -> None:
    masks = []
    for batch_size in (1, 5):
        state = prune(random_decoder("llama"), SURGEON, tokens, [0.2], seed=0, batch_size=batch_size)
        masks.append(torch.cat([site.mask.keep().reshape(-1) for _, site in state.sites()]))
    assert torch.equal(*masks)


def test_skipping_the_finished_shots_of_a_full_schedule() -> None:
    tokens = torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(1))
    whole = prune(random_decoder("llama"), SURGEON, tokens, [0.1, 0.2], seed=0, batch_size=2)
    finished = random_decoder("llama")
    again = prune(finished, SURGEON, tokens, [0.1, 0.2], seed=0, batch_size=2, start=whole, start_step=2)
    assert state_digest(again) == state_digest(whole)


def test_core_works_on_plain_layers_of_any_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(3, 4, bias=True).requires_grad_(False)
    linear.weight.copy_(torch.randn(4, 3, generator=generator))
    layers = Layers([LinearSite("only", "only", 0, 0, linear)])
    held = Held({"only": {"input_gram": Gram(torch.eye(4), "A"), "output_gram": Gram(torch.eye(4), "G")}})
    walk = Walk(layers, SURGEON, Lines(RowsColumns()), 0, 1, None, ALONE, None, None)
    masks, _ = walk.shoot(held, {"only": masking.full(linear.weight, linear.bias)}, 1.0, 1, "global")
    assert held.values == {}
    assert linear.weight.abs().sum() + linear.bias.abs().sum() == 0
    assert masks["only"].removed == masks["only"].total == 16


@pytest.mark.parametrize("schedule", [[0.2, 0.1], [1.0], [-0.1], [float("nan")]])
def test_bad_schedules_are_refused(schedule: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"schedule=.*0 <= ratio < 1"):
        prune(random_decoder("llama"), SURGEON, torch.zeros(1, 4).long(), schedule, seed=0, batch_size=1)


def test_bad_starts_and_allocations_are_refused(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    method = Magnitude("magnitude", 1, None)
    with pytest.raises(ConfigError, match=r"start_step=3.*0 to 1"):
        prune(decoder, method, tokens, [0.1], seed=0, batch_size=1, start_step=3)
    with pytest.raises(ConfigError, match=r"start=None.*state after step 1"):
        prune(decoder, method, tokens, [0.1], seed=0, batch_size=1, start_step=1)
    with pytest.raises(ConfigError, match=r"allocation.name='layers'.*uniform \| global"):
        prune(decoder, method, tokens, [0.1], seed=0, batch_size=1, allocation="layers")
    elements = {site.name: Elementwise(site.linear.weight > 0) for site in decoder.sites()}
    with pytest.raises(ConfigError, match=r"start='elements'.*masks of lines"):
        prune(decoder, method, tokens, [0.1], seed=0, batch_size=1, start=read_state(decoder, elements))


def test_masks_of_rows_and_columns_are_what_states_hold(tokens: Tensor) -> None:
    state = prune(random_decoder("opt"), SURGEON, tokens, [0.2], seed=0, batch_size=5)
    assert all(isinstance(site.mask, Structured) for _, site in state.sites())
