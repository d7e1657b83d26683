"""Taylor sums: the block-wise walk equals autograd of the whole model, one float64 sequence at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.collect import collect_all
from prunelab.pattern.base import KINDS
from prunelab.stats.base import load_statistic
from prunelab.stats.taylor import SUMS, TaylorSum, TaylorSums
from prunelab.structures.units import trace_units

NEEDS = ("taylor",)


def sums(decoder: Decoder, tokens: Tensor, batch_size: int = 2) -> dict[str, TaylorSums]:
    values = collect_all(decoder, tokens, NEEDS, batch_size)
    return {site.name: values[site.name]["taylor"] for site in decoder.sites()}


def stored_gradients(decoder: Decoder, tokens: Tensor) -> dict[str, list[tuple[Tensor, Tensor | None]]]:
    """The gradient of every layer's weight and bias for each sequence's mean token loss, all kept."""
    sites = decoder.sites()
    parameters = [p for s in sites for p in (s.linear.weight, s.linear.bias) if p is not None]
    kept: dict[str, list[tuple[Tensor, Tensor | None]]] = {site.name: [] for site in sites}
    for parameter in parameters:
        parameter.requires_grad_(True)
    for sequence in tokens:
        logits = decoder.model(input_ids=sequence[None], use_cache=False).logits[0]
        found = iter(torch.autograd.grad(F.cross_entropy(logits[:-1], sequence[1:]), parameters))
        for site in sites:
            kept[site.name].append((next(found), None if site.linear.bias is None else next(found)))
    for parameter in parameters:
        parameter.requires_grad_(False)
    return kept


def by_hand(w: Tensor, gradients: list[Tensor]) -> dict[str, Tensor]:
    """The four terms of every weight, each as the docstring of stats/taylor.py writes it."""
    w, each = w.double(), [one.double() for one in gradients]
    g = sum(each, torch.zeros_like(w)) / len(each)
    fisher = sum((one**2 for one in each), torch.zeros_like(w)) / len(each)
    return {
        "signed": w * g,
        "element1": (w * g).abs(),
        "second": w**2 * fisher,
        "mixed": (w * g - 0.5 * w**2 * fisher).abs(),
    }


def close(left: Tensor, right: Tensor, tolerance: float) -> None:
    scale = float(right.double().abs().max())
    torch.testing.assert_close(left.double(), right.double(), rtol=0, atol=tolerance * scale)


def test_walk_equals_stored_gradients_for_any_batch_size(family_name: str, tokens: Tensor) -> None:
    decoder = random_decoder(family_name, dtype=torch.float64)
    stored = stored_gradients(decoder, tokens)
    for batch_size in (1, 2, 5):  # 2 leaves a last batch of one
        found = sums(decoder, tokens, batch_size)
        for site in decoder.sites():
            weights, biases = zip(*stored[site.name], strict=True)
            expected = by_hand(site.linear.weight, list(weights))
            for kind in SUMS:
                close(found[site.name].of(kind, 0, bias=False), expected[kind].sum(1), 1e-6)
                close(found[site.name].of(kind, 1), expected[kind].sum(0), 1e-6)
            if site.linear.bias is None:
                assert not found[site.name].bias.any()
                continue
            of_bias = by_hand(site.linear.bias, list(biases))
            for kind in SUMS:
                with_bias = expected[kind].sum(1) + of_bias[kind]
                close(found[site.name].of(kind, 0), with_bias, 1e-6)


def test_float32_walk_is_close_to_float64(decoder: Decoder, tokens: Tensor) -> None:
    exact = sums(random_decoder(decoder.family.name, dtype=torch.float64), tokens)
    for name, found in sums(decoder, tokens).items():
        close(found.rows[1:], exact[name].rows[1:], 2e-5)
        # signed sums are differences: their error is that of what cancels
        scale = float(exact[name].columns[1].max())
        assert float((found.columns[0] - exact[name].columns[0]).abs().max()) < 2e-5 * scale


def test_batch_size_changes_no_bit_of_what_one_sequence_adds() -> None:
    """On the same inputs and slopes: how a matrix product rounds for another batch is not the sum's."""
    draw = torch.Generator().manual_seed(0)
    x, slope = torch.randn(5, 7, 6, generator=draw), torch.randn(5, 7, 4, generator=draw)
    weight, bias = torch.randn(4, 6, generator=draw), torch.randn(4, generator=draw)
    values = []
    for parts in ((5,), (1, 4), (1, 1, 1, 1, 1)):
        running = TaylorSum(weight, bias)
        for rows, slopes in zip(x.split(parts), slope.split(parts), strict=True):
            running.add(rows, slopes)
        values.append(load_statistic("taylor").pack(running.finish()))
    assert all(torch.equal(value, values[0]) for value in values)


def test_batch_size_changes_no_bit_of_the_walk(family_name: str) -> None:
    tokens = torch.randint(3, 64, (17, 20), generator=torch.Generator().manual_seed(7))
    first, *others = (sums(random_decoder(family_name), tokens, size) for size in (1, 3, 16))
    for other in others:
        for name, value in first.items():
            assert torch.equal(other[name].rows, value.rows)
            assert torch.equal(other[name].columns, value.columns)


def test_gradients_of_several_row_blocks_are_those_of_one() -> None:
    draw = torch.Generator().manual_seed(0)
    x, slope = torch.randn(2, 5, 3, generator=draw), torch.randn(2, 5, 600, generator=draw)
    weight, bias = torch.randn(600, 3, generator=draw), torch.randn(600, generator=draw)
    running = TaylorSum(weight, bias)
    running.add(x, slope)
    found = running.finish()
    gradients = [s.double().T @ t.double() / 4 for t, s in zip(x, slope, strict=True)]
    for kind, term in by_hand(weight, gradients).items():
        close(found.of(kind, 0, bias=False), term.sum(1), 1e-6)
        close(found.of(kind, 1), term.sum(0), 1e-6)
    for kind, term in by_hand(bias, [s.double().sum(0) / 4 for s in slope]).items():
        close(found.bias[SUMS.index(kind)], term, 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_signed_sums_obey_eulers_identities(family_name: str, bias: bool, tokens: Tensor) -> None:
    """A unit's in-maps and out-map scale the same activation: their signed sums agree, with the biases' terms."""
    decoder = random_decoder(family_name)
    found = sums(decoder, tokens)
    agreed, has_bias = [], False
    for index in range(len(decoder.blocks)):
        units = trace_units(decoder, index, KINDS)
        of = {
            member.role: member.per_unit(found[site.name].of("signed", member.axis, bias=bias).double())
            for traced in units.values()
            for site, member in traced
        }
        pairs = [("value", "output")]
        if "gate" in of or family_name == "opt":  # the gate is not linear, up is; ReLU is homogeneous
            pairs.append(("up", "down"))
        if family_name not in ("qwen3", "gemma3"):  # norms on query and key
            pairs.append(("query", "key"))
        sides = {role for pair in pairs for role in pair} - {"output", "down"}
        has_bias |= any(m.bias is not None for t in units.values() for _, m in t if m.role in sides)
        for left, right in ((of[a], of[b]) for a, b in pairs):
            scale = float(right.abs().max())
            agreed.append(float((left - right).abs().max()) < 2e-4 * scale)
    assert all(agreed) == (bias or not has_bias)


def test_signed_sum_of_up_is_the_activation_times_its_slope(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    found = sums(decoder, tokens)
    down = decoder.site("model.layers.1.mlp.down_proj")
    expected = torch.zeros(down.linear.in_features, dtype=torch.float64)
    for sequence in tokens:
        caught: list[Tensor] = []

        def keep(_: object, args: tuple[Tensor, ...], caught: list[Tensor] = caught) -> tuple[Tensor]:
            caught.append(args[0].detach().requires_grad_())
            return (caught[0],)

        handle = down.linear.register_forward_pre_hook(keep)
        logits = decoder.model(input_ids=sequence[None], use_cache=False).logits[0]
        handle.remove()
        (slope,) = torch.autograd.grad(F.cross_entropy(logits[:-1], sequence[1:]), caught)
        expected += (caught[0] * slope).detach().double().sum((0, 1)) / len(tokens)
    close(found["model.layers.1.mlp.up_proj"].of("signed", 0), expected, 1e-4)
    close(found[down.name].of("signed", 1), expected, 1e-4)


def test_opposite_sequences_leave_only_the_second_order_term() -> None:
    weight = torch.tensor([[2.0, -1.0]])
    running = TaylorSum(weight, None)
    x = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
    slope = torch.tensor([[[0.5], [0.0]]])
    running.add(x, slope)
    running.add(x, -slope)
    found = running.finish()
    assert not found.of("signed", 0).any()
    assert not found.of("element1", 1).any()
    fisher = torch.tensor([0.25, 2.25])
    assert torch.equal(found.of("second", 1), weight[0] ** 2 * fisher)
    assert torch.equal(found.of("mixed", 1), weight[0] ** 2 * fisher / 2)


def test_twice_the_calibration_set_changes_nothing(tokens: Tensor) -> None:
    once, twice = (sums(random_decoder("opt"), many, 1) for many in (tokens, torch.cat([tokens, tokens])))
    for name in once:
        close(twice[name].rows, once[name].rows, 1e-6)
        close(twice[name].columns, once[name].columns, 1e-6)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_stored_sums_are_the_same(family: str, tokens: Tensor) -> None:
    decoder, taylor = random_decoder(family), load_statistic("taylor")
    for name, value in sums(decoder, tokens).items():
        again = taylor.unpack(taylor.pack(value), decoder.site(name).linear.out_features, name)
        assert torch.equal(again.rows, value.rows)
        assert torch.equal(again.columns, value.columns)
        assert torch.equal(again.bias, value.bias)
        assert taylor.is_finite(value)
    with pytest.raises(ValueError, match=r"shape \(4, more than 8\)"):
        taylor.unpack(torch.zeros(4, 8), 4, "a layer")


def test_gradients_of_one_block_are_there_at_a_time(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[TaylorSum] = []
    most = 0
    begin, finish = TaylorSum.__init__, TaylorSum.finish

    def note(running: TaylorSum, *args: Tensor) -> None:
        begin(running, *args)
        started.append(running)

    def count(running: TaylorSum) -> TaylorSums:
        nonlocal most
        most = max(most, sum(one.total.numel() for one in started))
        return finish(running)

    monkeypatch.setattr(TaylorSum, "__init__", note)
    monkeypatch.setattr(TaylorSum, "finish", count)
    decoder = random_decoder("opt", num_hidden_layers=4)
    sums(decoder, tokens)
    assert most == 2 * sum(p.numel() for site in decoder.sites(0) for p in site.linear.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_have_sums_in_float32(dtype: torch.dtype, tokens: Tensor) -> None:
    exact = sums(random_decoder("qwen2"), tokens)
    for name, value in sums(random_decoder("qwen2", dtype=dtype), tokens).items():
        assert value.rows.dtype == torch.float32
        close(value.of("element1", 0), exact[name].of("element1", 0), 0.1)


def test_beside_other_statistics_each_gets_what_it_would_alone(tokens: Tensor) -> None:
    alone = {
        need: collect_all(random_decoder("qwen2"), tokens, (need,), 2) for need in ("taylor", "output_gram")
    }
    both = collect_all(random_decoder("qwen2"), tokens, ("taylor", "output_gram", "input_norm"), 2)
    for name, values in both.items():
        assert torch.equal(values["taylor"].rows, alone["taylor"][name]["taylor"].rows)
        assert torch.equal(values["output_gram"].matrix, alone["output_gram"][name]["output_gram"].matrix)
