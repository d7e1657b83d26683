"""Text of one role never reaches what another decides: held-out and test text, and what repairs fit to."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunelab.structures.state import open_state

Run = Callable[..., subprocess.CompletedProcess[str]]
BASE = ["method=sparsegpt", "sparsity=unstructured", "reconstruction=cross_block",
        "reconstruction.epochs=1", "reconstruction.min_updates=0",
        "runtime.threads=1", "-m"]  # fmt: skip
OTHER_TEXT = ["evaluation.corpora=[kjv]", "evaluation.held_out=[austen,jargon]", "evaluation.error_samples=3",
              "evaluation.max_samples=2", "evaluation.seq_len=48"]  # fmt: skip
WRITTEN = ["reconstruction_data=self_generated_mix", "reconstruction_data.parts.self_generated=4",
           "reconstruction_data.text_len=48", "reconstruction_data.batch=4", "reconstruction_data.language=any"]  # fmt: skip


def states(root: Path, kind: str) -> dict[str, bytes]:
    """The files of pruned or repaired weights by their stages' folders."""
    found = sorted((root / "store" / kind).glob("*/outputs/state.safetensors"))
    return {path.parents[1].name: path.read_bytes() for path in found}


@pytest.mark.slow
def test_what_is_measured_or_written_moves_no_mask_and_no_other_repair(prunelab: Run, home: Path) -> None:
    first = prunelab(*BASE)
    assert first.returncode == 0, first.stdout + first.stderr
    # the same weights once more, from nothing, while other text is measured and a repair reads other text
    for words in (WRITTEN, []):
        done = prunelab(*BASE, *OTHER_TEXT, *words, f"paths.root={home}/other")
        assert done.returncode == 0, done.stdout + done.stderr

    assert states(home, "prune") == states(home / "other", "prune")
    (name,) = states(home, "prune")
    repaired, others = states(home, "reconstruct"), states(home / "other", "reconstruct")
    assert len(repaired) == 1
    assert len(others) == 2
    assert repaired.items() <= others.items()
    own = next(iter(others.keys() - repaired.keys()))  # the repair that read text of the model's own

    folder = home / "other" / "store"
    pruned = open_state(folder / "prune" / name / "outputs" / "state.safetensors")
    mixed = open_state(folder / "reconstruct" / own / "outputs" / "state.safetensors")
    for site in pruned.names:
        assert torch.equal(pruned.site(site).mask.keep(), mixed.site(site).mask.keep())
        assert not torch.equal(pruned.site(site).weight, mixed.site(site).weight)
