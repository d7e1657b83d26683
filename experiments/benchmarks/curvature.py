"""Kronecker factors of the embedded Llama, the naive way against prunelab's walk: seconds and ratios.

Naive: one sequence at a time through the whole model, a backward that builds every weight gradient, a Gram
per layer even where layers share their input, as the published code of arXiv:2312.17244 does.

    python experiments/benchmarks/curvature.py [n_samples] [seq_len] [batch_size]
    python experiments/benchmarks/curvature.py memory naive|walk    (one way per process)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder
from prunelab.models.random import random_decoder
from prunelab.passes.collect import collect_all

SPEC = Path(__file__).parents[2] / "conf" / "model" / "embedded_llama.yaml"


def naive(decoder: Decoder, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """A and G of every layer, as prunelab defines them, by full backward passes of one sequence each."""
    sites = decoder.sites()
    sums = {
        site.name: [torch.zeros(n, n) for n in (site.linear.in_features, site.linear.out_features)]
        for site in sites
    }
    caught: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            caught[name] = (args[0], output)

        return hook

    handles = [site.linear.register_forward_hook(keep(site.name)) for site in sites]
    for site in sites:
        site.linear.weight.requires_grad_(True)
    for sequence in tokens:
        logits = decoder.model(input_ids=sequence[None], use_cache=False).logits[0]
        F.cross_entropy(logits[:-1].float(), sequence[1:], reduction="sum").backward()
        for name, (inputs, output) in caught.items():
            a, g = inputs.detach()[0].float(), output.grad[0].float()
            sums[name][0] += a.T @ a / tokens.numel()
            sums[name][1] += g.T @ g / tokens.numel()
    for handle in handles:
        handle.remove()
    for site in sites:
        site.linear.weight.requires_grad_(False)
        site.linear.weight.grad = None
    return {name: (A, G) for name, (A, G) in sums.items()}


def race(works: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, tuple[float, Any]]:
    """Best wall time in seconds and result of each; in turns, so that a busy machine slows all alike."""
    best: dict[str, tuple[float, Any]] = {}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            result = work()
            seconds = time.perf_counter() - began
            best[name] = (min(seconds, best.get(name, (seconds,))[0]), result)
    return best


def main(n_samples: int = 32, seq_len: int = 128, batch_size: int = 8) -> None:
    """Time both ways on random tokens and print how far their results differ."""
    decoder = load_decoder(yaml.safe_load(SPEC.read_text()))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, decoder.model.config.vocab_size, (n_samples, seq_len), generator=generator)
    both, inputs = ("input_gram", "output_gram"), ("input_gram",)
    found = race(
        {
            "naive: batch 1, weight gradients": lambda: naive(decoder, tokens),
            "A and G, batch 1": lambda: collect_all(decoder, tokens, both, 1),
            f"A and G, batch {batch_size}": lambda: collect_all(decoder, tokens, both, batch_size),
            f"A only, batch {batch_size}": lambda: collect_all(decoder, tokens, inputs, batch_size),
        }
    )
    slow, expected = next(iter(found.values()))
    print(f"{decoder.name}: {n_samples} x {seq_len} tokens, {torch.get_num_threads()} threads")
    for name, (seconds, _) in found.items():
        print(f"{name:34} {seconds:7.3f} s {slow / seconds:6.2f}x")
    ours = found[f"A and G, batch {batch_size}"][1]
    gap = max(
        float((ours[name]["output_gram"].matrix - G).norm() / G.norm()) for name, (_, G) in expected.items()
    )
    print(f"largest relative difference of G: {gap:.1e}")


def memory(way: str) -> None:
    """Print what one way adds to the peak resident memory on a random Llama, 12 blocks of width 512."""
    decoder = random_decoder(
        "llama",
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=256,
    )
    tokens = torch.randint(3, 64, (6, 256), generator=torch.Generator().manual_seed(0))
    before, began = _peak_mib(), time.process_time()
    if way == "naive":
        naive(decoder, tokens)
    else:
        collect_all(decoder, tokens, ("input_gram", "output_gram"), 2)
    seconds = time.process_time() - began
    print(f"{way}: {_peak_mib() - before:.0f} MiB more at the peak, {seconds:.1f} CPU seconds")


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(sys.argv[2])
    else:
        main(*map(int, sys.argv[1:]))
