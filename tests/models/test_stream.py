"""The walk over blocks is the model's own forward, bit for bit, forward and backward."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from prunelab.errors import DataError
from prunelab.family import Family
from prunelab.models.activation import Placement, open_shelf
from prunelab.models.decoder import Decoder, freeze
from prunelab.models.random import random_decoder
from prunelab.models.stream import Stream, advance, call_block, fork, head, open_stream, token_losses


def walk(decoder: Decoder, tokens: Tensor, batch_size: int) -> Stream:
    stream = open_stream(decoder, tokens, batch_size)
    for index in range(len(decoder.blocks)):
        advance(decoder, index, stream)
    return stream


def assert_walk_is_forward(decoder: Decoder, tokens: Tensor, batch_size: int) -> None:
    stream = walk(decoder, tokens, batch_size)
    for rows in stream.batches():
        batch = tokens[rows]
        with torch.no_grad():
            expected = decoder.model(input_ids=batch, use_cache=False).logits
            plain = decoder.model(batch).logits
        got = head(decoder, stream.read(rows), stream.tokens[rows])
        assert torch.equal(got, expected)
        assert torch.equal(got, plain)


@pytest.mark.parametrize("batch_size", [5, 2, 1, 8])
def test_walk_is_forward(decoder: Decoder, tokens: Tensor, batch_size: int) -> None:
    assert_walk_is_forward(decoder, tokens, batch_size)


def test_walk_is_forward_in_bfloat16(family_name: str, tokens: Tensor) -> None:
    assert_walk_is_forward(random_decoder(family_name, dtype=torch.bfloat16), tokens, 3)


def test_walk_is_forward_within_the_sliding_window(decoder: Decoder, tokens: Tensor) -> None:
    assert_walk_is_forward(decoder, tokens[:, :5].contiguous(), 2)


def test_sliding_windows_differ_from_full_attention(tokens: Tensor) -> None:
    """Guards the tests above: with these lengths the window really cuts something off."""
    for name in ("mistral", "gemma3"):
        narrow, wide = random_decoder(name), random_decoder(name, sliding_window=64)
        with torch.no_grad():
            assert not torch.equal(narrow.model(tokens).logits, wide.model(tokens).logits)


def test_gemma3_blocks_get_different_arguments(tokens: Tensor) -> None:
    stream = open_stream(random_decoder("gemma3"), tokens, 5)
    sliding, full = stream.arguments[5]
    masks = [arguments.kwargs["attention_mask"] for arguments in (sliding, full)]
    assert masks[0] is not None
    assert masks[1] is None or not torch.equal(masks[0], masks[1])


BLOOM = Family(
    name="bloom",
    model_types=("bloom",),
    blocks="transformer.h",
    inputs=(
        ("self_attention.query_key_value",),
        ("self_attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ),
    mlp=(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    attention=None,
    random={"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
)


def test_walk_is_forward_where_blocks_return_tuples(tokens: Tensor) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **BLOOM.random))
    freeze(model)
    decoder = Decoder(model=model, family=BLOOM, name="bloom", max_len=64)
    stream = open_stream(decoder, tokens, 2)
    last = stream.arguments[2][0]
    returned = decoder.blocks[0](stream.read(slice(0, 2)), *last.args, **last.kwargs)
    assert isinstance(returned, tuple)
    assert_walk_is_forward(decoder, tokens, 2)


def test_forward_is_restored(decoder: Decoder, tokens: Tensor) -> None:
    stream = walk(decoder, tokens, 2)
    head(decoder, stream.read(slice(0, 2)), stream.tokens[:2])
    assert all("forward" not in vars(block) for block in decoder.blocks)


def test_forward_is_restored_after_a_failure(decoder: Decoder, tokens: Tensor) -> None:
    stream = walk(decoder, tokens, 5)
    with pytest.raises(RuntimeError):
        head(decoder, stream.read(slice(None))[..., :-1], tokens)
    with pytest.raises((RuntimeError, IndexError)):
        head(decoder, stream.read(slice(None)), tokens + 1000)
    assert all("forward" not in vars(block) for block in decoder.blocks)
    assert_walk_is_forward(decoder, tokens, 5)


def test_a_forward_set_by_someone_else_survives(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    block = decoder.blocks[0]
    original = block.forward
    calls = []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = counted
    assert_walk_is_forward(decoder, tokens, 5)
    assert block.forward is counted
    assert calls


def reference_losses(decoder: Decoder, tokens: Tensor) -> Tensor:
    logits = decoder.model(input_ids=tokens, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
        tokens.shape[0], -1
    )


@pytest.mark.typical_families
@pytest.mark.parametrize("chunk", [None, 1, 7, 30, 1000])
def test_token_losses(decoder: Decoder, tokens: Tensor, chunk: int | None) -> None:
    stream = walk(decoder, tokens, 5)
    losses = token_losses(decoder, stream.read(slice(None)), tokens, chunk)
    with torch.no_grad():
        expected = reference_losses(decoder, tokens)
    assert losses.dtype == torch.float32
    assert losses.shape == (5, 19)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_logits_exist_for_one_chunk_at_a_time(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = random_decoder("llama")
    hidden = walk(decoder, tokens, 5).read(slice(None)).clone().requires_grad_()
    sizes: list[int] = []
    references: list[weakref.ref[Tensor]] = []

    def counted(*args: object) -> Tensor:
        # none of the earlier logits is alive, also when a gradient is asked for
        assert [reference() for reference in references] == [None] * len(references)
        logits = head(*args)
        sizes.append(logits.shape[0] * logits.shape[1])
        references.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr("prunelab.models.stream.head", counted)
    losses = token_losses(decoder, hidden, tokens, 10)
    losses.sum().backward()
    assert sizes == [10] * 9 + [5]


@pytest.mark.parametrize("chunk", [None, 7])
def test_gradients_are_those_of_the_whole_model(family_name: str, tokens: Tensor, chunk: int | None) -> None:
    decoder = random_decoder(family_name, dtype=torch.float64)
    stream = open_stream(decoder, tokens, 5)
    weights = torch.rand(5, 19, generator=torch.Generator().manual_seed(1))

    entry = stream.read(slice(None)).clone().requires_grad_()
    hidden = entry
    for index in range(len(decoder.blocks)):
        hidden = call_block(decoder, index, stream, hidden)
    (token_losses(decoder, hidden, tokens, chunk) * weights).sum().backward()

    leaf: list[Tensor] = []

    def swap(module: object, args: tuple, kwargs: dict) -> tuple:
        leaf.append(args[0].detach().clone().requires_grad_())
        return (leaf[0], *args[1:]), kwargs

    handle = decoder.blocks[0].register_forward_pre_hook(swap, with_kwargs=True)
    (reference_losses(decoder, tokens) * weights).sum().backward()
    handle.remove()
    assert entry.grad is not None
    assert entry.grad.abs().max() > 0
    # norms and the loss compute in float32 even in a float64 model
    torch.testing.assert_close(entry.grad, leaf[0].grad, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in decoder.model.parameters())


def test_last_position_has_no_loss_and_no_gradient(decoder: Decoder, tokens: Tensor) -> None:
    hidden = walk(decoder, tokens, 5).read(slice(None)).clone().requires_grad_()
    token_losses(decoder, hidden, tokens).sum().backward()
    assert hidden.grad is not None
    assert torch.count_nonzero(hidden.grad[:, -1]) == 0
    assert torch.all(hidden.grad[:, :-1].abs().sum(-1) > 0)


def test_stream_carries_no_graph(decoder: Decoder, tokens: Tensor) -> None:
    stream = walk(decoder, tokens, 2)
    states = stream.read(slice(None))
    assert not states.requires_grad
    # made under no_grad, not inference_mode: they may enter autograd later
    assert not states.is_inference()


def test_fork_moves_alone(decoder: Decoder, tokens: Tensor) -> None:
    stream = open_stream(decoder, tokens, 2)
    first = stream.read(slice(None)).clone()
    other = fork(stream)
    assert torch.equal(other.read(slice(None)), first)
    advance(decoder, 0, other)
    assert torch.equal(stream.read(slice(None)), first)
    assert not torch.equal(other.read(slice(None)), first)


@pytest.mark.typical_families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shelf_changes_no_bit(family_name: str, dtype: torch.dtype, tokens: Tensor, tmp_path: Path) -> None:
    decoder = random_decoder(family_name, dtype=dtype)
    expected = walk(decoder, tokens, 2).read(slice(None))
    for place in ("device", "ram", "disk"):
        with open_shelf(Placement(place, None, tmp_path), dtype, decoder.device) as shelf:
            stream = open_stream(decoder, tokens, 2, shelf)
            other = fork(stream, shelf)
            assert stream.hidden.on_disk == other.hidden.on_disk == (place == "disk")
            for index in range(len(decoder.blocks)):
                advance(decoder, index, stream)
                advance(decoder, index, other)
            assert torch.equal(stream.read(slice(None)), expected)
            assert torch.equal(other.read(slice(None)), expected)
    assert not list(tmp_path.iterdir())


def test_a_batch_of_any_size_finds_its_arguments(decoder: Decoder, tokens: Tensor) -> None:
    stream, whole = (open_stream(decoder, tokens, size) for size in (2, 4))
    with torch.no_grad():
        for size in (4, 3, 1):
            hidden = stream.read(slice(0, size))
            assert torch.equal(call_block(decoder, 0, stream, hidden), call_block(decoder, 0, whole, hidden))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), "int64"),
        (torch.zeros(4, 4, dtype=torch.int32), "int64"),
        (torch.zeros(0, 4, dtype=torch.int64), "not empty"),
        (torch.zeros(1, 65, dtype=torch.int64), "seq_len=65.*64"),
        (torch.full((1, 4), 64), "token 64 .* 0 to 63"),
        (torch.full((1, 4), -1), "token -1"),
    ],
)
def test_bad_tokens(bad: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_stream(random_decoder("llama"), bad, 2)


def test_bad_batch_size(tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        open_stream(random_decoder("llama"), tokens, 0)
