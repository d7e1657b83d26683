"""An architecture that prunelab does not know, by one YAML file: pruned, evaluated and shown like any other."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

Run = Callable[..., subprocess.CompletedProcess[str]]
FAMILY = """
model_types: [starcoder2]
blocks: model.layers
inputs:
  - [self_attn.q_proj, self_attn.k_proj, self_attn.v_proj]
  - [self_attn.o_proj]
  - [mlp.c_fc]
  - [mlp.c_proj]
mlp: {writers: [mlp.c_fc], reader: mlp.c_proj}
attention: {query: self_attn.q_proj, key: self_attn.k_proj, value: self_attn.v_proj, output: self_attn.o_proj}
"""


@pytest.fixture
def starcoder(tmp_path: Path) -> list[str]:
    """A random checkpoint, tokens for it, and the words that name both and its family."""
    config = AutoConfig.for_model(
        "starcoder2", vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tiny")
    np.save(tmp_path / "ids.npy", np.random.RandomState(0).randint(3, 64, (60, 32)))
    (tmp_path / "starcoder2.yaml").write_text(FAMILY)
    return [
        "model=local", f"model.id={tmp_path / 'tiny'}", "model.family=starcoder2.yaml", "calibration=tokens",
        f"calibration.path={tmp_path / 'ids.npy'}", "calibration.split={mask:train,held_out:validation,test:test}",
        "evaluation.corpora=[tokens]", "evaluation.held_out=[tokens]", "runtime.threads=1",
    ]  # fmt: skip


def test_it_is_pruned_evaluated_and_shown(
    prunelab: Run, home: Path, tmp_path: Path, starcoder: list[str]
) -> None:
    words = ["study=s", *starcoder, "method=surgeon,magnitude", "sparsity.ratio=0.2", "-m"]
    done = prunelab(*words, "hydra.launcher.report=true")
    assert done.returncode == 0, done.stdout + done.stderr
    with (home / "studies" / "s" / "report" / "results.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert {"surgeon", "magnitude"} <= rows.keys()
    assert all(
        float(rows[name]["ratio/weights"]) == pytest.approx(0.2, abs=0.02)
        for name in ("surgeon", "magnitude")
    )
    assert "tiny" in rows["surgeon"]["model"]
    status = prunelab("status", "s", module="prunelab.cli")
    assert "2 done" in status.stdout, status.stdout
    # what the file says counts, not where it lies
    (tmp_path / "other.yaml").write_text(FAMILY)
    same = prunelab(*words, "model.family=other.yaml")
    assert "ran no stage" in same.stdout, same.stdout + same.stderr


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("model_types: [starcoder2]", "model_types: [falcon]", "model_type='starcoder2': allowed is falcon"),
        ("blocks: model.layers\n", "", "'blocks' is missing"),
        ("reader: mlp.c_proj", "reader: mlp.down", "mlp.down of mlp or attention is not among the inputs"),
        ("inputs:", "input:", "Did you mean 'inputs'?"),
        ("model_types: [starcoder2]", "model_types: ]", "cannot be read"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    prunelab: Run, home: Path, tmp_path: Path, starcoder: list[str], old: str, new: str, says: str
) -> None:
    (tmp_path / "starcoder2.yaml").write_text(FAMILY.replace(old, new))
    done = prunelab(*starcoder, "method=magnitude")
    assert done.returncode == 1
    assert says in done.stderr, done.stderr
    assert not (home / "store").exists()
