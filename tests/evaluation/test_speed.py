"""The race of two decoders: turns, medians, what is counted; the clock is ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunelab.errors import ConfigError, DataError
from prunelab.evaluation.speed import Speed, checkpoint_bytes, measure_speed
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder


class Clock:
    """A clock that only forwards move on: by ``cost[name]`` seconds for every token that a model reads."""

    def __init__(self, decoders: dict[str, Decoder], cost: dict[str, Callable[[], float]]) -> None:
        self.now, self.calls = 0.0, []
        for name, decoder in decoders.items():
            decoder.model.register_forward_pre_hook(self._hook(name, cost[name]), with_kwargs=True)

    def _hook(self, name: str, cost: Callable[[], float]) -> Callable[..., None]:
        def hook(module: object, args: Any, kwargs: dict[str, Any]) -> None:
            shape = tuple(kwargs["input_ids"].shape)
            self.calls.append((name, shape, kwargs["input_ids"].clone(), kwargs.get("past_key_values")))
            self.now += cost() * shape[1]

        return hook

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pair() -> dict[str, Decoder]:
    return {"dense": random_decoder("llama"), "small": random_decoder("llama", intermediate_size=8)}


def test_rates_are_tokens_of_the_batch_over_the_median_round(pair: dict[str, Decoder]) -> None:
    slow: Iterator[float] = iter([9.0] * 4 + [1.0] * 4 + [5.0] * 4 + [3.0] * 4)  # a warm-up and three rounds
    clock = Clock(pair, {"dense": lambda: next(slow), "small": lambda: 0.5})
    found = measure_speed(pair, batch_size=2, prompt_len=6, new_tokens=3, rounds=3, warm_up=1, clock=clock)
    assert found["dense"].prefill == (6.0, 30.0, 18.0)
    assert found["dense"].decode == (3.0, 15.0, 9.0)
    assert found["dense"].prefill_tokens_per_s == pytest.approx(2 * 6 / 18)
    assert found["dense"].decode_tokens_per_s == pytest.approx(2 * 3 / 9)
    assert found["small"].prefill_tokens_per_s == pytest.approx(2 / 0.5)
    assert found["small"].values() == {
        "prefill_tokens_per_s": 4.0, "decode_tokens_per_s": 4.0, "parameters": pair["small"].n_parameters(),
        "parameter_bytes": 4 * pair["small"].n_parameters(),
    }  # fmt: skip


def test_models_take_turns_in_changing_order_and_read_the_same(pair: dict[str, Decoder]) -> None:
    clock = Clock(pair, {"dense": lambda: 1.0, "small": lambda: 1.0})
    measure_speed(pair, batch_size=2, prompt_len=5, new_tokens=2, rounds=2, warm_up=1, seed=4, clock=clock)
    turns = clock.calls[::3]
    assert [name for name, *_ in turns] == ["dense", "small", "small", "dense", "dense", "small"]
    for at in range(0, len(clock.calls), 3):
        assert [shape for _, shape, _, _ in clock.calls[at : at + 3]] == [(2, 5), (2, 1), (2, 1)]
        assert clock.calls[at][3] is None
        assert clock.calls[at + 1][3] is clock.calls[at + 2][3] is not None  # one cache for the text
        for mine, first in zip(clock.calls[at : at + 3], clock.calls[:3], strict=True):
            assert torch.equal(mine[2], first[2])
    other = Clock(pair, {"dense": lambda: 1.0, "small": lambda: 1.0})
    measure_speed(pair, batch_size=2, prompt_len=5, new_tokens=2, rounds=1, warm_up=0, seed=5, clock=other)
    assert not torch.equal(other.calls[0][2], clock.calls[0][2])


def test_half_precision_has_half_the_bytes() -> None:
    decoder = random_decoder("opt", dtype=torch.bfloat16)
    speed = measure_speed({"x": decoder}, prompt_len=4, new_tokens=2, rounds=1, warm_up=0)["x"]
    assert speed.parameter_bytes == 2 * speed.parameters == 2 * decoder.n_parameters()
    assert speed.prefill[0] > 0
    assert speed.decode[0] > 0


def test_fewer_units_are_faster_by_the_real_clock() -> None:
    """Eight times as many weights: the ratio is far from what a busy machine does to a median in turns."""
    width = {"hidden_size": 256, "intermediate_size": 4096, "num_hidden_layers": 3}
    models = {
        "dense": random_decoder("llama", **width),
        "small": random_decoder("llama", **width | {"intermediate_size": 256}),
    }
    found = measure_speed(models, batch_size=4, prompt_len=32, new_tokens=4, rounds=3)
    assert found["small"].prefill_tokens_per_s > found["dense"].prefill_tokens_per_s


def test_bytes_on_disk_are_those_of_the_weights(tmp_path: Path) -> None:
    random_decoder("llama").model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert checkpoint_bytes(tmp_path) == sum(shard.stat().st_size for shard in shards)


@pytest.mark.parametrize("key", ["batch_size", "prompt_len", "new_tokens", "rounds", "warm_up"])
def test_counts_below_one_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}=-1: allowed is"):
        measure_speed({"x": random_decoder("llama")}, **{key: -1})
    with pytest.raises(ConfigError, match="at least one"):
        measure_speed({})


def test_texts_longer_than_a_decoder_takes_are_refused() -> None:
    with pytest.raises(DataError, match="seq_len=65 is more than"):
        measure_speed({"x": random_decoder("llama")}, prompt_len=60, new_tokens=5)


def test_a_median_of_two_is_their_mean() -> None:
    assert Speed(1, 10, 1, (1.0, 3.0), (1.0, 1.0), 1, 4).prefill_tokens_per_s == 5.0
