"""Exported trials are ordinary checkpoints: plain transformers gives the record's perplexity from them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunelab.plan.study import Plan, load_plan
from prunelab.stages.calibrate import read
from prunelab.store.layout import locate
from prunelab.store.record import read_record

Run = Callable[..., subprocess.CompletedProcess[str]]
STUDIES = {
    "single": ["method=wanda,sparsegpt", "sparsity=2of4"],
    "repaired": ["model=embedded_opt", "method=wanda", "sparsity=unstructured", "reconstruction=block",
                 "reconstruction.min_updates=2", "reconstruction.epochs=1"],
    "lines": ["model=embedded_opt", "method=kobd", "sparsity.ratio=0.2", "method.step=0.2",
              "model.dtype=bfloat16"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the studies lie."""
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def plan_of(run_in: Run, folder: Path) -> Callable[[str], Plan]:
    """``plan_of(study)`` is the plan of one of STUDIES that has run."""

    @cache
    def plan(study: str) -> Plan:
        done = run_in(folder, f"study={study}", *STUDIES[study], "-m")
        assert done.returncode == 0, done.stdout + done.stderr
        return load_plan(folder / "home" / "studies" / study)

    return plan


def perplexity(folder: Path, tokens: torch.Tensor, **how: bool) -> float:
    """By plain transformers: exp of the mean loss over the targets of all windows."""
    model = AutoModelForCausalLM.from_pretrained(folder, **how)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").double()
    return math.exp(float(losses.mean()))


@pytest.mark.parametrize("study", STUDIES)
def test_plain_transformers_gives_the_numbers_of_the_record(
    study: str, run_in: Run, folder: Path, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    plan = plan_of(study)
    for trial in plan.trials:
        out = tmp_path / "out" / trial.name
        exported = run_in(folder, "export", study, trial.name, str(out), module="prunelab.cli")
        assert exported.returncode == 0, exported.stderr
        folders = {role: locate(plan.store, plan.stages[key].kind, key) for role, key in trial.stages.items()}
        recorded = read_record(folders["evaluate"]).metrics["ppl/austen"]
        assert perplexity(out, read(folders["test/austen"] / "outputs")) == pytest.approx(recorded, rel=1e-6)
        assert AutoTokenizer.from_pretrained(out)("some text")["input_ids"]
        facts = json.loads((out / "prunelab.json").read_text())
        assert facts["trial"] == trial.name
        assert facts["metrics"]["ppl/austen"] == recorded
        card = (out / "README.md").read_text()
        assert f"pruned by {trial.config.method.name}" in card
        assert f"| ppl/austen | {recorded:.6g} |" in card
        assert "An ordinary checkpoint: removed weights are zeros." in card
        size = (out / "model.safetensors").stat().st_size
        own = facts["checkpoint"]
        assert own == {"compact": False, "parameters": own["parameters"], "bytes": size, "own_code": False}
        weight = next(iter(AutoModelForCausalLM.from_pretrained(out).model.parameters()))
        assert weight.dtype == getattr(torch, trial.config.model.dtype)


def test_what_cannot_be_exported_is_said(
    run_in: Run, prunelab: Run, folder: Path, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    plan = plan_of("repaired")
    (trial,) = plan.trials
    words = ("export", str(plan.folder), trial.name.replace("wanda", "wand"), str(tmp_path / "x"))
    wrong = prunelab(*words, module="prunelab.cli")
    assert wrong.returncode == 1
    assert f"Did you mean {trial.name!r}?" in wrong.stderr

    def export(to: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return run_in(folder, "export", "repaired", trial.name, str(to), *more, module="prunelab.cli")

    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    refused = export(full)
    assert "is not empty" in refused.stderr
    assert (full / "mine.txt").read_text() == "keep me"
    kept = export(full, "--force")  # it is nobody's earlier export
    assert kept.returncode == 1
    assert "holds no earlier export" in kept.stderr
    assert (full / "mine.txt").read_text() == "keep me"
    whole = tmp_path / "whole"
    assert export(whole).returncode == 0
    (whole / "mine.txt").write_text("replace me")
    assert export(whole, "--force").returncode == 0
    assert not (whole / "mine.txt").exists()
    assert (whole / "model.safetensors").is_file()
    evaluate = plan.stages[trial.stages["evaluate"]]
    done = locate(plan.store, evaluate.kind, evaluate.key) / "DONE"
    text = done.read_bytes()
    done.unlink()
    try:
        unfinished = export(tmp_path / "y")
    finally:
        done.write_bytes(text)
    assert "is not finished: evaluate is missing" in unfinished.stderr
    assert not (tmp_path / "y").exists()


def test_compact_is_smaller_or_says_why_it_cannot_be(
    run_in: Run, folder: Path, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    """Single rows and columns fit no padded checkpoint; of single weights nothing goes as a whole, so all of them stay."""
    plan = plan_of("lines")
    (trial,) = plan.trials
    out = tmp_path / "lines"
    words = ("export", "lines", trial.name, str(out), "--compact")
    refused = run_in(folder, *words, "--form", "padded", module="prunelab.cli")
    assert refused.returncode == 1
    assert "export it without --compact" in refused.stderr
    assert not out.exists()
    exported = run_in(folder, *words, module="prunelab.cli")
    assert exported.returncode == 0, exported.stderr
    folders = {role: locate(plan.store, plan.stages[key].kind, key) for role, key in trial.stages.items()}
    facts = json.loads((out / "prunelab.json").read_text())
    assert facts["checkpoint"]["own_code"]
    assert facts["checkpoint"]["parameters"] == facts["metrics"]["parameters/compact"]
    found = perplexity(out, read(folders["test/austen"] / "outputs"), trust_remote_code=True)
    assert found == pytest.approx(
        facts["metrics"]["ppl/austen"], rel=0.01
    )  # sums of bfloat16 in another order
    again = run_in(folder, "study=again", "model=local", f"model.id={out}", "method=kobd", "-m")
    assert again.returncode != 0
    assert "Layers of this one pick single inputs or outputs" in again.stdout + again.stderr
    out = tmp_path / "single"
    (trial,) = plan_of("repaired").trials
    words = ("export", "repaired", trial.name, str(out), "--form", "padded")
    alone = run_in(folder, *words, module="prunelab.cli")
    assert alone.returncode == 1
    assert "--form padded is a shape of what is left: add --compact" in alone.stderr
    assert run_in(folder, *words, "--compact", module="prunelab.cli").returncode == 0
    assert "zeros that make all layers equally wide" in (out / "README.md").read_text()
    facts = json.loads((out / "prunelab.json").read_text())
    assert facts["checkpoint"]["form"] == "padded"
    shutil.rmtree(out)
    done = run_in(folder, "export", "repaired", trial.name, str(out), "--compact", module="prunelab.cli")
    assert done.returncode == 0, done.stderr
    facts = json.loads((out / "prunelab.json").read_text())
    assert facts["checkpoint"]["compact"]
    assert facts["checkpoint"]["parameters"] == AutoModelForCausalLM.from_pretrained(out).num_parameters()
