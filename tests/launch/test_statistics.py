"""A sweep from the dense stream looks at the dense model once, and its states are those of the function alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from prunelab.methods.sparsegpt import SparseGPT
from prunelab.methods.wanda import Wanda
from prunelab.models.load import load_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.weights import Unstructured
from prunelab.stages.calibrate import read
from prunelab.structures.state import open_state, state_digest

Run = Callable[..., subprocess.CompletedProcess[str]]
CONF = Path(__file__).parents[2] / "conf"
SWEEP = ["study=s", "method=wanda,sparsegpt", "sparsity=unstructured", "sparsity.propagation=dense",
         "sparsity.ratio=0.3,0.5,0.7", "runtime.threads=1", "-m"]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_looks_once_and_gives_the_bits_of_the_function(prunelab: Run, home: Path) -> None:
    preview = prunelab(*SWEEP, "hydra.launcher.dry_run=true")
    assert preview.returncode == 0, preview.stdout + preview.stderr
    row = next(line.split("│") for line in preview.stdout.splitlines() if line.startswith("│ statistics"))
    assert [cell.strip() for cell in row[2:6]] == ["2", "2", "0", "2"]

    done = prunelab(*SWEEP)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 statistics" in done.stdout
    store = home / "store"
    assert len(list(store.glob("statistics/*/DONE"))) == 2
    tokens = read(next(store.glob("calibrate/austen-mask*/outputs")))
    model = yaml.safe_load((CONF / "model" / "embedded_llama.yaml").read_text())
    methods = {"wanda": Wanda("wanda", 1, None), "sparsegpt": SparseGPT("sparsegpt", 1, None, 128, 0.01)}
    records = sorted(store.glob("prune/*/record.json"))
    assert len(records) == 6
    for path in records:
        identity = json.loads(path.read_text())["identity"]
        (ratio,) = identity["schedule"]
        alone = prune(
            load_decoder(model), methods[identity["method"]["name"]], tokens, [ratio], pattern=Unstructured(),
            seed=0, batch_size=2048 // tokens.shape[1], propagation="dense",
        )  # fmt: skip
        state = open_state(path.parent / "outputs" / "state.safetensors")
        assert state_digest(state) == state_digest(alone)
