"""How fast decoders are beside each other: tokens per second while a prompt is read, and while text is written.

The models take turns, every round in the other order, so that a machine that slows down slows all of them; a rate is
the median over the rounds. All read and write the same tokens, drawn from a seed: what a model would say itself does not
matter to its speed. Numbers of one run on one machine compare with each other and with nothing else.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.models.decoder import Decoder
from prunelab.models.narrow import CompactLinear
from prunelab.models.stream import check_tokens


@dataclass(frozen=True)
class Speed:
    """Seconds of every round: ``prefill`` (to read ``batch_size`` prompts of ``prompt_len`` tokens at once) and
    ``decode`` (to write ``new_tokens`` tokens after them, one by one, with a cache); and the model's size."""

    batch_size: int
    prompt_len: int
    new_tokens: int
    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    parameters: int
    parameter_bytes: int

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of the prompts read in a second, all of the batch counted; by the median round."""
        return self.batch_size * self.prompt_len / median(self.prefill)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens written in a second, all of the batch counted; by the median round."""
        return self.batch_size * self.new_tokens / median(self.decode)

    def values(self) -> dict[str, float | int]:
        """Flat numbers for a record."""
        return {
            "prefill_tokens_per_s": self.prefill_tokens_per_s, "decode_tokens_per_s": self.decode_tokens_per_s,
            "parameters": self.parameters, "parameter_bytes": self.parameter_bytes,
        }  # fmt: skip


def speedup(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile of ``slow`` over ``fast``, seconds of the same rounds.

    Both runs of a round are neighbours in time, so what slows the machine for longer than a round cancels. Where the
    quartiles lie on both sides of 1 the rounds do not say which is faster.
    """
    found = sorted(a / b for a, b in zip(slow, fast, strict=True))
    if len(found) == 1:
        return found[0], found[0], found[0]
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return low, middle, high


@torch.no_grad()
def measure_speed(
    decoders: Mapping[str, Decoder],
    *,
    batch_size: int = 1,
    prompt_len: int = 128,
    new_tokens: int = 32,
    rounds: int = 5,
    warm_up: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """Measure the ``decoders`` in turns, by name; all are in memory at once.

    ``warm_up``: rounds before the measured ones, whose times are thrown away. ``clock`` gives seconds. Raises ConfigError
    for counts below 1 (``warm_up`` below 0), DataError where prompt and text are longer than a decoder takes.
    """
    counts = {"batch_size": batch_size, "prompt_len": prompt_len, "new_tokens": new_tokens, "rounds": rounds}
    for key, value in counts.items():
        if value < 1:
            raise ConfigError(key, value, "an integer, x >= 1")
    if warm_up < 0:
        raise ConfigError("warm_up", warm_up, "an integer, x >= 0")
    if not decoders:
        raise ConfigError("decoders", {}, "at least one decoder")
    vocabulary = min(int(decoder.model.config.vocab_size) for decoder in decoders.values())
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (batch_size, prompt_len + new_tokens), generator=generator)
    for decoder in decoders.values():
        check_tokens(decoder, tokens, batch_size)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in decoders}
    for turn in range(warm_up + rounds):
        names = list(decoders) if turn % 2 == 0 else list(decoders)[::-1]
        for name in names:
            seconds = _run(decoders[name], tokens, prompt_len, clock)
            if turn >= warm_up:
                times[name].append(seconds)
    return {
        name: Speed(
            batch_size,
            prompt_len,
            new_tokens,
            tuple(prefill for prefill, _ in times[name]),
            tuple(decode for _, decode in times[name]),
            decoder.n_parameters(),
            parameter_bytes(decoder),
        )
        for name, decoder in decoders.items()
    }


def parameter_bytes(decoder: Decoder) -> int:
    """Bytes of the model's parameters in memory, tied ones once, and of the places that compacted layers pick."""
    picking = (module for module in decoder.blocks.modules() if isinstance(module, CompactLinear))
    places = [buffer for module in picking for buffer in module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*decoder.model.parameters(), *places))


def device_name(device: torch.device) -> str:
    """What people call the device: the GPU's name, or that of the processor where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        with suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return device.type


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights on disk: all safetensors of ``folder``."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _run(
    decoder: Decoder, tokens: Tensor, prompt_len: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds to read the prompt, and to write the rest of ``tokens`` after it."""
    tokens, model = tokens.to(decoder.device), decoder.model
    # the head works on the last position alone where the model can do so, as when it writes text
    last: dict[str, Any] = (
        {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    start = _now(decoder, clock)
    found = model(input_ids=tokens[:, :prompt_len], use_cache=True, **last)
    read = _now(decoder, clock)
    for place in range(prompt_len, tokens.shape[1]):
        found = model(
            input_ids=tokens[:, place : place + 1],
            past_key_values=found.past_key_values,
            use_cache=True,
            **last,
        )
    return read - start, _now(decoder, clock) - read


def _now(decoder: Decoder, clock: Callable[[], float]) -> float:
    """The clock's seconds once the device has done what it was given."""
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
    elif decoder.device.type == "mps":
        torch.mps.synchronize()
    return clock()
