"""SparseGPT and Wanda end to end: prunelab's pass against the plain way and against its floor, in one run.

Plain: one sequence at a time, one Hessian, one inversion and one loop over columns per linear layer, as in the
published code of arXiv:2301.00774. Floor of a sequential pass: two forwards over the calibration tokens in the
run's dtype (statistics, then the pruned block). Also: what SparseGPT's time goes into, and what three more
ratios from the dense stream cost. Everything that is put into a ratio is the better of two runs taken in turns,
so that a moment in which the machine is busy counts for nothing; the plain way, the longest, runs once.

    python experiments/benchmarks/sparsegpt.py [smollm2_135m|embedded_llama] [n_samples] [seq_len] [dtype ...]
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prunelab.api import load_model, load_tokens
from prunelab.methods.sparsegpt import SparseGPT
from prunelab.methods.wanda import Wanda
from prunelab.models.decoder import Decoder
from prunelab.models.stream import advance, call_block, open_stream
from prunelab.passes import source
from prunelab.passes.shots import prune, prune_ratios
from prunelab.pattern.weights import Unstructured
from prunelab.stats.gram import Gram, GramSum

BLOCK, DAMPING, RATIO, BATCH_TOKENS = 128, 0.01, 0.5, 2048
SPARSEGPT, WANDA = SparseGPT("sparsegpt", 1, None, BLOCK, DAMPING), Wanda("wanda", 1, None)
FREE = Unstructured()


@torch.no_grad()
def plain(decoder: Decoder, tokens: Tensor) -> None:
    """The published way on a decoder, in place."""
    stream = open_stream(decoder, tokens, 1)
    for index in range(len(decoder.blocks)):
        sites = decoder.sites(index)
        H = {site.name: torch.zeros(site.linear.in_features, site.linear.in_features) for site in sites}
        handles = [site.linear.register_forward_hook(_adder(H[site.name], len(tokens))) for site in sites]
        for rows in stream.batches():
            call_block(decoder, index, stream, stream.read(rows))
        for handle in handles:
            handle.remove()
        for site in sites:
            site.linear.weight.copy_(_plain_layer(site.linear.weight.float().clone(), H.pop(site.name)))
        if index < len(decoder.blocks) - 1:
            advance(decoder, index, stream)


def _adder(H: Tensor, n: int) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].reshape(-1, args[0].shape[-1]).float()
        H.add_(x.T @ x, alpha=2 / n)

    return hook


def _plain_layer(W: Tensor, H: Tensor) -> Tensor:
    columns = W.shape[1]
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H.double())), upper=True).float()
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, errors, inner = (
            W[:, start:stop].clone(),
            torch.zeros(W.shape[0], stop - start),
            U[start:stop, start:stop],
        )
        score = block.square() / inner.diagonal().square()
        gone = score <= torch.sort(score.flatten()).values[int(score.numel() * RATIO) - 1]
        for i in range(stop - start):
            w = block[:, i]
            error = (w - w.masked_fill(gone[:, i], 0)) / inner[i, i]
            block[:, i:] -= error[:, None] @ inner[i, i:][None]
            errors[:, i] = error
        W[:, start:stop] = block.masked_fill(gone, 0)
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return W


@torch.no_grad()
def floor(decoder: Decoder, tokens: Tensor, batch_size: int) -> None:
    """Two forwards of all blocks, nothing else."""
    for _ in range(2):
        stream = open_stream(decoder, tokens, batch_size)
        for index in range(len(decoder.blocks)):
            advance(decoder, index, stream)


@contextmanager
def clocked(parts: dict[str, float]) -> Iterator[None]:
    """While open, add seconds to ``parts``: forwards, Gram matrices, inversions, choices, column loops."""
    wrapped = [
        (source, "collect_block", "forwards"), (source, "advance", "forwards"), (GramSum, "add", "Gram matrices"),
        (Gram, "inverse_factor", "inversions"), (SparseGPT, "_choose", "choices"),
        (SparseGPT, "prune_many", "column loops"),
    ]  # fmt: skip
    before = [vars(owner)[name] for owner, name, _ in wrapped]

    def timed(function: Any, part: str) -> Any:
        bare = function.__func__ if isinstance(function, staticmethod) else function

        def run(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = bare(*args, **options)
            parts[part] = parts.get(part, 0.0) + time.perf_counter() - began
            return result

        return staticmethod(run) if bare is not function else run

    try:
        for (owner, name, part), function in zip(wrapped, before, strict=True):
            setattr(owner, name, timed(function, part))
        yield
    finally:
        for (owner, name, _), function in zip(wrapped, before, strict=True):
            setattr(owner, name, function)
    parts["forwards"] -= parts["Gram matrices"]
    parts["column loops"] -= parts["inversions"] + parts["choices"]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Race:
    """Runs pieces of work on one decoder, each from the dense weights, and keeps the best time of each."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.dense = {site.name: site.linear.weight.clone() for site in decoder.sites()}
        self.best: dict[str, float] = {}

    def take(self, works: dict[str, Callable[[], object]], rounds: int = 2) -> None:
        """Time ``works`` in turns and print the best of each."""
        for _ in range(rounds):
            for name, work in works.items():
                with torch.no_grad():
                    for site in self.decoder.sites():
                        site.linear.weight.copy_(self.dense[site.name])
                spent = seconds(work)
                self.best[name] = min(spent, self.best.get(name, spent))
        for name in works:
            print(f"  {name:38s} {self.best[name]:8.2f} s", flush=True)


def main(name: str, n_samples: int, seq_len: int, dtype: str) -> None:
    """Run and print everything for one size and dtype."""
    model = load_model(name, dtype=dtype)
    tokens = load_tokens(model, "austen", n_samples=n_samples, seq_len=seq_len)
    decoder, batch_size = model.decoder, max(1, BATCH_TOKENS // seq_len)
    common: dict[str, Any] = {"pattern": FREE, "seed": 0, "batch_size": batch_size}
    race, best = Race(decoder), {}
    parts: dict[str, float] = {}

    def sparsegpt() -> None:
        found: dict[str, float] = {}
        with clocked(found):
            spent = seconds(lambda: prune(decoder, SPARSEGPT, tokens, [RATIO], **common))
        if spent < best.get("all", spent + 1):
            best["all"] = spent
            parts.update(found)

    print(f"{name} {dtype}, {n_samples} x {seq_len} tokens, {torch.get_num_threads()} threads")
    floor(decoder, tokens[:batch_size], batch_size)  # warm up
    race.take(
        {
            "two forwards (floor)": lambda: floor(decoder, tokens, batch_size),
            "wanda": lambda: prune(decoder, WANDA, tokens, [RATIO], **common),
            "sparsegpt": sparsegpt,
        }
    )
    race.take({"sparsegpt, the plain way": lambda: plain(decoder, tokens)}, rounds=1)
    more = [0.5, 0.3, 0.4, 0.6]
    race.take(
        {
            f"{method.name}, dense stream, {len(r)} ratio{'s' * (len(r) > 1)}": (
                lambda m=method, r=r: prune_ratios(decoder, m, tokens, ratios=r, **common)
            )
            for method in (WANDA, SPARSEGPT)
            for r in (more[:1], more)
        }
    )
    took = race.best
    print(
        f"sparsegpt: {took['sparsegpt, the plain way'] / took['sparsegpt']:.2f} times as fast as the plain way"
    )
    print(f"wanda: {took['wanda'] / took['two forwards (floor)']:.2f} times its floor")
    parts["rest"] = best["all"] - sum(parts.values())
    shares = ", ".join(f"{part} {value:.1f} s ({value / best['all']:.0%})" for part, value in parts.items())
    print(f"sparsegpt's time: {shares}")
    for method in ("wanda", "sparsegpt"):
        one, four = (took[f"{method}, dense stream, {k}"] for k in ("1 ratio", "4 ratios"))
        print(f"{method}: four ratios from the dense stream cost {four / one:.2f} times one")


if __name__ == "__main__":
    values = sys.argv[1:]
    for kind in values[3:] or ("bfloat16", "float32"):
        main(*(values[:1] or ["smollm2_135m"]), *map(int, values[1:3] or (16, 512)), kind)
