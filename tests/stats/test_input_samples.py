"""Samples are the inputs at the drawn tokens, the same tokens in every layer, whatever the batch and the ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.models.decoder import Decoder
from prunelab.passes.collect import collect_all
from prunelab.stats import input_samples
from prunelab.stats.base import Place
from prunelab.stats.input_samples import InputSamples, SampleRows, drawn


def _states(n: int = 7, seq_len: int = 9, width: int = 4) -> Tensor:
    """Every entry says where it stands."""
    return torch.arange(n * seq_len * width, dtype=torch.float32).view(n, seq_len, width)


def _sampled(parts: list[tuple[int, Tensor]], n: int, seq_len: int) -> Tensor:
    total = torch.zeros(())
    for first, x in parts:  # one running sum each, as ranks have
        running = SampleRows(x.shape[2])
        running.place(Place(first, n, seq_len))
        for batch in x.split(2):
            running.add(batch)
        total = total + running.finish()
    return total


def test_every_token_but_the_first_of_a_sequence_is_taken_once_where_there_are_few() -> None:
    x = _states()
    found = _sampled([(0, x)], 7, 9)
    assert sorted(found[:, 0].tolist()) == x[:, 1:, 0].flatten().tolist()
    assert found[:, 0].tolist() != sorted(found[:, 0].tolist())  # the first rows are a draw of all tokens


@pytest.mark.parametrize("shares", [(3, 4), (0, 7), (2, 2, 3)])
def test_shares_of_the_sequences_add_up_to_the_same_rows(
    shares: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_samples, "ROWS", 20)
    drawn.cache_clear()
    x = _states()
    whole = _sampled([(0, x)], 7, 9)
    assert whole.shape == (20, 4)
    parts, first = [], 0
    for part in x.split(list(shares)):
        parts.append((first, part))
        first += len(part)
    assert torch.equal(_sampled(parts, 7, 9), whole)
    sequence, position = drawn(7, 9)
    assert torch.equal(whole, x[sequence, position])
    assert int(position.min()) >= 1
    drawn.cache_clear()


def test_draws_are_spread_evenly() -> None:
    sequence, position = drawn(64, 65)
    assert len(sequence) == 1024 == len(set(zip(sequence.tolist(), position.tolist(), strict=True)))
    counts = sequence.bincount(minlength=64)
    assert int(counts.min()) >= 4  # 16 each on average
    assert int(counts.max()) <= 32
    assert abs(float(position.float().mean()) - 32.5) < 2
    assert len(drawn(3, 1)[0]) == 0


def test_of_a_model_they_are_what_enters_its_layers(decoder: Decoder, tokens: Tensor) -> None:
    found = collect_all(decoder, tokens, ("input_samples",), 2)
    sequence, position = drawn(*tokens.shape)
    caught: dict[str, list[Tensor]] = {site.name: [] for site in decoder.sites()}
    handles = [
        site.linear.register_forward_pre_hook(lambda _, args, name=site.name: caught[name].append(args[0]))
        for site in decoder.sites()
    ]
    with torch.no_grad():
        for one in tokens:
            decoder.model(input_ids=one[None], use_cache=False)
    for handle in handles:
        handle.remove()
    for name, inputs in caught.items():
        whole = torch.stack([x.reshape(tokens.shape[1], -1) for x in inputs])
        torch.testing.assert_close(
            found[name]["input_samples"], whole[sequence, position], rtol=1e-4, atol=1e-5
        )
    again = collect_all(decoder, tokens, ("input_samples",), 5)
    for name, values in again.items():
        torch.testing.assert_close(
            values["input_samples"], found[name]["input_samples"], rtol=1e-4, atol=1e-5
        )


def test_channels_are_cut_out_and_another_width_is_refused() -> None:
    statistic, value = InputSamples(), torch.arange(12.0).view(3, 4)
    kept = torch.tensor([True, False, True, False, True])  # the last one is the bias' input
    assert torch.equal(statistic.restrict(value, kept), value[:, [0, 2]])
    assert torch.equal(statistic.unpack(statistic.pack(value), 4, "a layer"), value)
    with pytest.raises(ValueError, match=r"\(n, 5\) is needed"):
        statistic.unpack(value, 5, "a layer")
    assert statistic.live(value) is None
    assert not statistic.is_finite(torch.tensor([[1.0, torch.nan]]))
