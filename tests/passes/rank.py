"""What one rank does in test_ranks.py: ``python rank.py RANK SIZE FOLDER`` leaves what it found in FOLDER."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore

from prunelab.allocation.owl import OWL
from prunelab.errors import ModelError, StageError
from prunelab.methods.sparsegpt import SparseGPT
from prunelab.methods.surgeon import Surgeon
from prunelab.methods.wanda import Wanda
from prunelab.models.inputs import collect_inputs
from prunelab.models.random import random_decoder
from prunelab.models.stream import open_stream
from prunelab.passes.curvature import collect_factors
from prunelab.passes.linear import prune_linear
from prunelab.passes.statistics import Found, collect_statistics
from prunelab.passes.structured import prune
from prunelab.sparsity.mask import Elementwise
from prunelab.sparsity.pattern import build_pattern
from prunelab.stats.group import Group, Ranks
from prunelab.structures.state import State

SURGEON = Surgeon("surgeon", 1, None, 0.01, 0.01, "full")
SPARSEGPT = SparseGPT("sparsegpt", 1, None, block=8, damping=0.01)
WANDA = Wanda("wanda", 1, None)
OUTLIERS = OWL("owl", 1, 2.0, 0.08)


def find(group: Group, n_sequences: int) -> dict[str, Tensor]:
    """Factors, linear statistics, masks and weights on so many sequences of 20 tokens, by name."""
    tokens = torch.randint(3, 64, (5, 20), generator=torch.Generator().manual_seed(7))[:n_sequences]
    found: dict[str, Tensor] = {}
    for family in ("llama", "opt"):
        factors = collect_factors(
            random_decoder(family), tokens, ("input_gram", "output_gram"), 2, group=group
        )
        for name, pair in factors.items():
            assert pair.A is not None
            assert pair.G is not None
            assert pair.n_tokens == tokens.numel()
            found |= {f"{family}/A/{name}": pair.A.clone(), f"{family}/G/{name}": pair.G}
        decoder = random_decoder(family)
        stream = open_stream(decoder, tokens, 2, group=group)
        needs = ("input_norm", "input_gram")
        for i, sums in enumerate(collect_inputs(decoder, 0, stream, needs, go_on=False)):
            assert sums.norm is not None
            assert sums.gram is not None
            assert sums.norm.n_tokens == sums.gram.n_tokens == tokens.numel()
            found |= {f"{family}/norm/{i}": sums.norm.finish(), f"{family}/gram/{i}": sums.gram.mean()}
        needs = ("input_norm", "input_gram")
        collect_statistics(random_decoder(family), tokens, needs, 2, keep_into(found, family), group=group)
        for name, state in _states(family, tokens, group):
            found |= {f"{family}/{key}": value for key, value in _flat(name, state)}
    return found


def keep_into(found: dict[str, Tensor], family: str) -> Callable[[int, Found], None]:
    """Return what keeps the statistics of every block."""

    def keep(index: int, statistics: Found) -> None:
        for i, one in enumerate(statistics):
            assert one.norm is not None
            assert one.gram is not None
            found[f"{family}/norm/of block {index}/{i}"] = one.norm.clone()
            found[f"{family}/gram/of block {index}/{i}"] = one.gram.clone()

    return keep


def _states(family: str, tokens: Tensor, group: Group) -> Iterator[tuple[str, State]]:
    plain: dict[str, Any] = {"seed": 0, "batch_size": 2, "group": group}
    half = {"pattern": build_pattern("unstructured"), "ratio": 0.5, **plain}
    wide = {"allocation": "global", "propagation": "dense"}
    yield "surgeon", prune(random_decoder(family), SURGEON, tokens, [0.2, 0.4], **plain)
    yield "sparsegpt", prune_linear(random_decoder(family), SPARSEGPT, tokens, **half)
    yield "owl", prune_linear(random_decoder(family), WANDA, tokens, **half, allocation=OUTLIERS)
    yield "global", prune_linear(random_decoder(family), WANDA, tokens, **half, **wide)


def _flat(name: str, state: State) -> Iterator[tuple[str, Tensor]]:
    for site, item in state.items.items():
        yield f"weight/{name}/{site}", item.weight.clone()
        mask = item.mask
        if isinstance(mask, Elementwise):
            yield f"mask/{name}/{site}", mask.keep_weight.clone()
        else:
            yield f"mask/{name}/{site}/rows", mask.keep_rows.clone()
            yield f"mask/{name}/{site}/columns", mask.joined_columns().clone()


def _failures(store: Any, rank: int, size: int) -> dict[str, str]:
    """What rank 0 learns of another that fails, that holds other weights, that is killed."""
    said: dict[str, str] = {}

    def attempt(what: str) -> None:
        group = Ranks(PrefixStore(what, store), rank, size)
        started = time.monotonic()
        try:
            if what == "fails" and rank == 1:
                raise ModelError("activations are not finite")
            if what == "differs":
                group.confirm([torch.full((2, 2), 1.0 + rank * 2**-23)], "after shot 3")
            if what == "is killed" and rank == 1:
                group.meet()  # so that the other is in the middle of the sum
                os.kill(os.getpid(), signal.SIGKILL)
            group.sum([torch.ones(3)])
        except (ModelError, StageError) as error:
            group.fail(str(error))
            said[what] = str(error)
        assert time.monotonic() - started < 20
        group.close()

    for what in ("differs", "fails", "is killed"):
        attempt(what)
    return said


def main() -> None:
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    port = folder / "port"
    if rank == 0:
        store = TCPStore("localhost", 0, size, is_master=True, wait_for_workers=False)
        port.with_suffix(".new").write_text(str(store.port))
        port.with_suffix(".new").replace(port)
    else:
        while not port.exists():
            time.sleep(0.05)
        store = TCPStore("localhost", int(port.read_text()), size, is_master=False, wait_for_workers=False)
    group = Ranks(PrefixStore("work", store), rank, size)
    for n_sequences in (5, 1):  # of one sequence the second rank has none
        save_file(find(group, n_sequences), folder / f"{n_sequences}-{rank}.safetensors")
    group.close()
    (folder / f"{rank}.json").write_text(json.dumps(_failures(store, rank, size)))


if __name__ == "__main__":
    main()
