"""Peak memory of SparseGPT and of block reconstruction: one model, one block's work, and a budget for hidden states.

    python experiments/benchmarks/memory.py [smollm2_135m|embedded_llama] [few] [many] [seq_len] [budget_gib] [dtype]

Each way runs in processes of its own on ``few`` and on ``many`` sequences, with hidden states beyond the budget in
files. Measured is VmHWM, the highest resident set, once for imports and loading and, reset in between, once for the
work, and all of that twice: what the allocator happens to keep moves a peak by up to 80 MB. It counts anonymous memory
and the pages of files while they are mapped (libraries, the batch of hidden states that is being copied), not the page
cache of files that are not.

The limit is the dense weights in the run's dtype, one block's training state (reconstruction: float32 weights,
mask, gradient and two moments of its linear layers; SparseGPT: nothing), the budget and 1.5 GB for all else:
Python and torch, statistics of a block, one batch on its way. Exit code 1 if a peak is above it, or if the peak
of the work (the lower of the two) grows from few to many by more than a quarter of what one stream's additional hidden
states hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prunelab.api import load_model, load_tokens
from prunelab.evaluation.cost import GIB, peak_gib, reset_peak
from prunelab.methods.magnitude import Magnitude
from prunelab.methods.sparsegpt import SparseGPT
from prunelab.models.activation import Placement
from prunelab.passes.shots import prune
from prunelab.pattern.weights import Unstructured
from prunelab.reconstruction.tuning import Tuning
from prunelab.reconstruction.walk import reconstruct
from prunelab.structures.state import open_state, save_state

REST, TRAINING_BYTES = 1.5e9, 5 * 4
BATCH_TOKENS, EPOCHS, REPEATS = 2048, 1, 2
WAYS = ("sparsegpt", "block_gp")


def child(
    way: str, name: str, n: int, seq_len: int, budget: float, dtype: str, state: Path
) -> dict[str, float]:
    """Do the work of one way in this process; ``magnitude`` writes the state that reconstruction starts from."""
    model = load_model(name, dtype=dtype)
    decoder = model.decoder
    tokens = load_tokens(model, "austen", n_samples=n, seq_len=seq_len)
    size = max(1, BATCH_TOKENS // seq_len)
    common: dict[str, Any] = {"pattern": Unstructured(), "seed": 0, "batch_size": size}
    width = decoder.model.config.get_text_config().hidden_size
    loaded = peak_gib()
    if not reset_peak():
        raise SystemExit("this system cannot reset a process' peak (/proc/self/clear_refs): no measurement")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=state.parent) as folder:
        placement = Placement("auto", budget, Path(folder))
        if way == "magnitude":
            save_state(prune(decoder, Magnitude("magnitude", 1, None), None, [0.5], **common), state)
        elif way == "sparsegpt":
            method = SparseGPT("sparsegpt", 1, None, 128, 0.01)
            prune(decoder, method, tokens, [0.5], placement=placement, **common)
        else:
            spec = Tuning(
                way, 1, window=1, stride=1, masks="before", target="global", trains="all", epochs=EPOCHS, min_updates=0,
                batch=8, part_tokens=BATCH_TOKENS, learning_rate=2e-4, beta1=0.9, beta2=0.95, clipping="none",
                max_norm=1000.0, patience=None,
            )  # fmt: skip
            reconstruct(
                decoder, open_state(state), tokens, spec, seed=0, batch_size=size, placement=placement,
                on_block=lambda report, part: None,
            )  # fmt: skip
    weights = {parameter.data_ptr(): parameter.nbytes for parameter in decoder.model.parameters()}
    block = max(
        sum(site.linear.weight.numel() for site in decoder.sites(index))
        for index in range(len(decoder.blocks))
    )
    return {
        "work": peak_gib() * GIB, "loading": loaded * GIB, "seconds": time.perf_counter() - began,
        "weights": sum(weights.values()), "block": block, "stream": tokens.numel() * width * decoder.dtype.itemsize,
    }  # fmt: skip


def measure(way: str, *arguments: object) -> dict[str, float]:
    """Run one way in a fresh process and return its numbers, in bytes and seconds."""
    words = [sys.executable, __file__, "child", way, *map(str, arguments)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(
    name: str = "smollm2_135m", few: int = 32, many: int = 96, seq_len: int = 512, budget: float = 0.01,
    dtype: str = "bfloat16",
) -> int:  # fmt: skip
    """Print a line per way and size, and a verdict."""
    good = True
    print(f"{name} {dtype}, budget for hidden states {budget:g} GiB; MB of 10^6 bytes", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.safetensors"
        measure("magnitude", name, 1, seq_len, budget, dtype, state)
        for way in WAYS:
            peaks = []
            for n in (few, many):
                runs = [measure(way, name, n, seq_len, budget, dtype, state) for _ in range(REPEATS)]
                found = min(runs, key=lambda run: run["work"])
                training = found["block"] * TRAINING_BYTES if way == "block_gp" else 0
                limit = found["weights"] + training + budget * 2**30 + REST
                good &= all(max(run["work"], run["loading"]) <= limit for run in runs)
                peaks.append(found)
                shown = " and ".join(f"{run['work'] / 1e6:.0f}" for run in runs)
                print(
                    f"{way:10s} {n:4d} x {seq_len}: peak {shown} MB (limit {limit / 1e6:5.0f}: "
                    f"weights {found['weights'] / 1e6:.0f}, training {training / 1e6:.0f}, budget {budget * 1073.74:.0f}, "
                    f"rest {REST / 1e6:.0f}); loading {found['loading'] / 1e6:.0f} MB; one stream holds "
                    f"{found['stream'] / 1e6:.0f} MB; {found['seconds']:.0f} s",
                    flush=True,
                )
            grown = peaks[1]["work"] - peaks[0]["work"]
            held = peaks[1]["stream"] - peaks[0]["stream"]
            good &= grown <= held / 4
            print(f"{way:10s} grows by {grown / 1e6:.0f} MB; {held / 1e6:.0f} MB more per stream are on disk")
    print("within the limit and not growing" if good else "ABOVE THE LIMIT OR GROWING")
    return 0 if good else 1


if __name__ == "__main__":
    values = sys.argv[1:]
    if values[:1] == ["child"]:
        way, name, n, seq_len, budget, dtype, state = values[1:]
        print(json.dumps(child(way, name, int(n), int(seq_len), float(budget), dtype, Path(state))))
    else:
        sys.exit(main(*values[:1], *map(int, values[1:4]), *map(float, values[4:5]), *values[5:]))
