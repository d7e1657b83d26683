"""Exported trials are ordinary checkpoints: plain transformers gives the record's perplexity from them."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunelab.plan.study import load_plan
from prunelab.stages.calibrate import read
from prunelab.store.layout import locate
from prunelab.store.record import read_record

Run = Callable[..., subprocess.CompletedProcess[str]]
STUDIES = {
    "single": ["method=wanda,sparsegpt", "sparsity=2of4"],
    "repaired": ["model=embedded_opt", "method=wanda", "sparsity=unstructured", "reconstruction=block",
                 "reconstruction.min_updates=2", "reconstruction.epochs=1"],
    "lines": ["model=embedded_opt", "method=kobd", "sparsity.ratio=0.2", "model.dtype=bfloat16"],
}  # fmt: skip


def perplexity(folder: Path, tokens: torch.Tensor) -> float:
    """By plain transformers: exp of the mean loss over the targets of all windows."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").double()
    return math.exp(float(losses.mean()))


@pytest.mark.parametrize("study", STUDIES)
def test_plain_transformers_gives_the_numbers_of_the_record(
    study: str, prunelab: Run, home: Path, tmp_path: Path
) -> None:
    done = prunelab(f"study={study}", *STUDIES[study], "runtime.threads=1", "-m")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = load_plan(home / "studies" / study)
    for trial in plan.trials:
        folder = tmp_path / "out" / trial.name
        exported = prunelab("export", study, trial.name, str(folder), module="prunelab.cli")
        assert exported.returncode == 0, exported.stderr
        folders = {role: locate(plan.store, plan.stages[key].kind, key) for role, key in trial.stages.items()}
        recorded = read_record(folders["evaluate"]).metrics["ppl/austen"]
        assert perplexity(folder, read(folders["test/austen"] / "outputs")) == pytest.approx(
            recorded, rel=1e-6
        )
        assert AutoTokenizer.from_pretrained(folder)("some text")["input_ids"]
        facts = json.loads((folder / "prunelab.json").read_text())
        assert facts["trial"] == trial.name
        assert facts["metrics"]["ppl/austen"] == recorded
        card = (folder / "README.md").read_text()
        assert f"pruned by {trial.config['method']['name']}" in card
        assert f"| ppl/austen | {recorded:.6g} |" in card
        weight = next(iter(AutoModelForCausalLM.from_pretrained(folder).model.parameters()))
        assert weight.dtype == getattr(torch, trial.config["model"]["dtype"])


def test_what_cannot_be_exported_is_said(prunelab: Run, home: Path, tmp_path: Path) -> None:
    assert prunelab("study=s", "method=magnitude", "runtime.threads=1").returncode == 0
    plan = load_plan(home / "studies" / "s")
    (trial,) = plan.trials

    def export(name: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return prunelab("export", "s", name, str(folder), *more, module="prunelab.cli")

    wrong = export(trial.name.replace("magnitude", "magnitud"), tmp_path / "x")
    assert wrong.returncode == 1
    assert f"Did you mean {trial.name!r}?" in wrong.stderr
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    refused = export(trial.name, full)
    assert "is not empty" in refused.stderr
    assert (full / "mine.txt").read_text() == "keep me"
    assert export(trial.name, full, "--force").returncode == 0
    assert (full / "model.safetensors").is_file()
    evaluate = plan.stages[trial.stages["evaluate"]]
    (locate(plan.store, evaluate.kind, evaluate.key) / "DONE").unlink()
    unfinished = export(trial.name, tmp_path / "y")
    assert "is not finished: evaluate is missing" in unfinished.stderr
    assert not (tmp_path / "y").exists()
