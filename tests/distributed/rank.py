"""What ranks do in test_group.py: ``python rank.py SIZE FOLDER`` leaves in FOLDER what each of SIZE processes found, and
how they ended. One process imports torch and divides itself: importing is half the work.
"""

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
from prunelab.distributed.group import Group, Ranks
from prunelab.errors import ModelError, StageError
from prunelab.methods.llm_pruner import LLMPruner
from prunelab.methods.sparsegpt import SparseGPT
from prunelab.methods.surgeon import Surgeon
from prunelab.methods.wanda import Wanda
from prunelab.models.random import random_decoder
from prunelab.models.stream import open_stream
from prunelab.passes.collect import BlockValues, collect_all, collect_block, load_needs
from prunelab.passes.shots import prune
from prunelab.passes.statistics import collect_statistics
from prunelab.pattern.table import build_pattern
from prunelab.pattern.weights import RowsColumns, Unstructured
from prunelab.reconstruction.lora import LoRA
from prunelab.reconstruction.whole import repair_whole
from prunelab.stats.block_influence import BlockInfluence
from prunelab.stats.taylor import Taylor
from prunelab.structures.state import State

SURGEON = Surgeon("surgeon", 1, None, 0.01, 0.01, "full", 2000, 0.1, 200)
SPARSEGPT = SparseGPT("sparsegpt", 1, None, block=8, damping=0.01)
WANDA = Wanda("wanda", 1, None)
PRUNER = LLMPruner("llm_pruner", 1, None, "mixed", "sum", True)
LORA = LoRA(
    "lora", 1, "before", ["query", "output", "up", "down"], rank=2, alpha=4.0, init="kaiming", dropout=0.1,
    masked="through", share=1.0, epochs=3, batch=4, learning_rate=1e-3, warmup=0, decay="update", beta1=0.9,
    beta2=0.999, weight_decay=0.0, clipping="norm", max_norm=1.0,
    held_out=0.0, look_every=1, keep="last", save_every=1,
)  # fmt: skip
OUTLIERS = OWL("owl", 1, 2.0, 0.08)


def find(group: Group, n_sequences: int) -> dict[str, Tensor]:
    """Factors, linear statistics, masks and weights on so many sequences of 20 tokens, by name."""
    tokens = torch.randint(3, 64, (5, 20), generator=torch.Generator().manual_seed(7))[:n_sequences]
    found: dict[str, Tensor] = {}
    for family in ("llama", "opt"):
        both = ("input_gram", "output_gram")
        for name, of_layer in collect_all(
            random_decoder(family), tokens, both, 2, ones=True, group=group
        ).items():
            found |= {f"{family}/A/{name}": of_layer["input_gram"].matrix.clone()}
            found |= {f"{family}/G/{name}": of_layer["output_gram"].matrix}
        for name, of_layer in collect_all(
            random_decoder(family), tokens, ("taylor",), 2, group=group
        ).items():
            found |= {f"{family}/taylor/{name}": Taylor().pack(of_layer["taylor"])}
        decoder = random_decoder(family)
        stream = open_stream(decoder, tokens, 2, group=group)
        needs = ("input_norm", "input_gram", "input_samples", "block_influence")
        keep = keep_into(found, family)
        keep(0, collect_block(decoder, 0, stream, load_needs(needs), advancing=False), "at once")
        collect_statistics(random_decoder(family), tokens, needs, 2, keep, group=group)
        for name, state in _states(family, tokens, group):
            found |= {f"{family}/{key}": value for key, value in _flat(name, state)}
            if name == "sparsegpt":
                found |= _recovered(family, state.clone(), tokens, group)
    return found


def _recovered(family: str, state: State, tokens: Tensor, group: Group) -> dict[str, Tensor]:
    """Weights after LoRA recovery, and the losses before and after."""
    whole, numbers = repair_whole(
        random_decoder(family), state, tokens, LORA, seed=0, batch_size=2, group=group
    )
    losses = torch.tensor([numbers["lm_loss_before"], numbers["lm_loss_after"]])
    weights = {f"{family}/lora/{name}": site.weight.clone() for name, site in whole.items.items()}
    return weights | {f"{family}/lora/losses": losses}


def keep_into(found: dict[str, Tensor], family: str) -> Callable[..., None]:
    """Return what keeps the statistics of every block."""

    def keep(index: int, values: BlockValues, what: str = "") -> None:
        for name, of_layer in values.items():
            found[f"{family}/norm/of block {index}{what}/{name}"] = of_layer["input_norm"].clone()
            found[f"{family}/gram/of block {index}{what}/{name}"] = of_layer["input_gram"].matrix.clone()
            influence = BlockInfluence().pack(of_layer["block_influence"])
            found[f"{family}/influence/of block {index}{what}/{name}"] = influence
            found[f"{family}/samples/of block {index}{what}/{name}"] = of_layer["input_samples"].clone()

    return keep


def _states(family: str, tokens: Tensor, group: Group) -> Iterator[tuple[str, State]]:
    plain: dict[str, Any] = {"seed": 0, "batch_size": 2, "group": group}
    half = {"pattern": Unstructured(), **plain}
    wide = {"allocation": "global", "propagation": "dense"}
    yield (
        "surgeon",
        prune(random_decoder(family), SURGEON, tokens, [0.2, 0.4], pattern=RowsColumns(), **plain),
    )
    yield "sparsegpt", prune(random_decoder(family), SPARSEGPT, tokens, [0.5], **half)
    yield "owl", prune(random_decoder(family), WANDA, tokens, [0.5], **half, allocation=OUTLIERS)
    units = {"pattern": build_pattern("units"), "allocation": "uniform", "propagation": "dense"}
    yield "units", prune(random_decoder(family), PRUNER, tokens, [0.3, 0.6], **plain, **units)
    yield "global", prune(random_decoder(family), WANDA, tokens, [0.5], **half, **wide)


def _flat(name: str, state: State) -> Iterator[tuple[str, Tensor]]:
    for site, item in state.items.items():
        yield f"weight/{name}/{site}", item.weight.clone()
        for part, tensor in item.mask.pack().items():
            yield f"mask/{name}/{site}/{part}", tensor.clone()


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
    """Be every rank in a process of its own; the exit codes of all are in ``ends.json``."""
    size, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            be(rank, size, folder)
            return
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (folder / "ends.json").write_text(json.dumps(ends))


def be(rank: int, size: int, folder: Path) -> None:
    """Do what one rank does."""
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
