"""SparseGPT and Wanda end to end: prunelab's pass against the plain way and against its floor, in one run.

Plain: one sequence at a time, one Hessian, one inversion and one loop over columns per linear layer, as in the
published code of arXiv:2301.00774. Floor of a sequential pass: two forwards over the calibration tokens in the
run's dtype (statistics, then the pruned block). Also: what SparseGPT's time goes into, and what three more
ratios from the dense stream cost.

    python experiments/benchmarks/sparsegpt.py [embedded_llama|smollm2_135m] [n_samples] [seq_len] [dtype]
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
from prunelab.passes.linear import prune_linear, prune_ratios
from prunelab.sparsity.pattern import build_pattern
from prunelab.stats.kronecker import GramSum
from prunelab.stats.linear import Hessian

BLOCK, DAMPING, RATIO, BATCH_TOKENS = 128, 0.01, 0.5, 2048
SPARSEGPT, WANDA = SparseGPT("sparsegpt", 1, None, BLOCK, DAMPING), Wanda("wanda", 1, None)
FREE = build_pattern("unstructured")


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
    """While open, add the seconds of Gram matrices, inversions and column loops to ``parts``."""
    wrapped = [(GramSum, "add", "Gram matrices"), (Hessian, "inverse_factor", "inversions")]
    wrapped += [(SparseGPT, "prune", "column loops")]
    before = [getattr(owner, name) for owner, name, _ in wrapped]

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            result = function(*args)
            parts[part] = parts.get(part, 0.0) + time.perf_counter() - began
            return result

        return run

    try:
        for (owner, name, part), function in zip(wrapped, before, strict=True):
            setattr(owner, name, timed(function, part))
        yield
    finally:
        for (owner, name, _), function in zip(wrapped, before, strict=True):
            setattr(owner, name, function)
    parts["column loops"] -= parts["inversions"]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(
    name: str = "embedded_llama", n_samples: int = 32, seq_len: int = 128, dtype: str = "float32"
) -> None:
    """Run and print everything; each way starts from the dense model again."""
    model = load_model(name, dtype=dtype)
    tokens = load_tokens(model, "austen", n_samples=n_samples, seq_len=seq_len)
    decoder, batch_size = model.decoder, max(1, BATCH_TOKENS // seq_len)
    dense = {site.name: site.linear.weight.clone() for site in decoder.sites()}
    common: dict[str, Any] = {"pattern": FREE, "seed": 0, "batch_size": batch_size}
    found: dict[str, float] = {}
    parts: dict[str, float] = {}

    @torch.no_grad()
    def take(what: str, work: Callable[[], object]) -> None:
        for site in decoder.sites():
            site.linear.weight.copy_(dense[site.name])
        found[what] = seconds(work)
        print(f"  {what:38s} {found[what]:8.2f} s", flush=True)

    print(f"{name} {dtype}, {n_samples} x {seq_len} tokens, {torch.get_num_threads()} threads")
    floor(decoder, tokens[:batch_size], batch_size)  # warm up
    take("two forwards (floor)", lambda: floor(decoder, tokens, batch_size))
    take("wanda", lambda: prune_linear(decoder, WANDA, tokens, ratio=RATIO, **common))
    with clocked(parts):
        take("sparsegpt", lambda: prune_linear(decoder, SPARSEGPT, tokens, ratio=RATIO, **common))
    for part, value in parts.items():
        print(f"    of which {part:27s} {value:8.2f} s")
    take("sparsegpt, the plain way", lambda: plain(decoder, tokens))
    more = [0.3, 0.4, 0.5, 0.6]
    for method in (WANDA, SPARSEGPT):
        for ratios in (more[:1], more):
            what = f"{method.name}, dense stream, {len(ratios)} ratio{'s' * (len(ratios) > 1)}"
            take(what, lambda m=method, r=ratios: prune_ratios(decoder, m, tokens, ratios=r, **common))
    print(
        f"sparsegpt: {found['sparsegpt, the plain way'] / found['sparsegpt']:.2f} times as fast as the plain way"
    )
    print(f"wanda: {found['wanda'] / found['two forwards (floor)']:.2f} times its floor")
    for method in ("wanda", "sparsegpt"):
        one, four = (found[f"{method}, dense stream, {k}"] for k in ("1 ratio", "4 ratios"))
        print(f"{method}: four ratios from the dense stream cost {four / one:.2f} times one")


if __name__ == "__main__":
    values = sys.argv[1:]
    main(*values[:1], *map(int, values[1:3]), *values[3:])
