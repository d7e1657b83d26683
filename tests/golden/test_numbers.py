"""Each method's and repair's numbers on toy models: who changes them raises a ``revision``.

The models are random and tiny, so numbers mean nothing in themselves. They are compared to 1e-3: CPUs round in
different ways, and a change of an algorithm moves them much further.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from by_conf import composer

from prunelab.launch.command.study import plan_study
from prunelab.launch.run.base import Order
from prunelab.launch.run.inline import Inline
from prunelab.launch.run.runner import local_resources
from prunelab.plan.graph import jobs as planned_jobs
from prunelab.plan.study import save_plan
from prunelab.store.layout import locate
from prunelab.store.record import read_record

PRUNED = {
    "sparsity=rows_columns sparsity.ratio=0.3 method.step=0.1": ("surgeon", "kobd", "lobd", "magnitude", "random"),
    "sparsity=unstructured sparsity.ratio=0.5": ("wanda", "sparsegpt", "magnitude", "random"),
    "sparsity=2of4": ("wanda", "sparsegpt", "magnitude", "random"),
    "sparsity=unstructured sparsity.ratio=0.4 sparsity.propagation=dense allocation=global": ("wanda", "magnitude"),
    "sparsity=unstructured sparsity.ratio=0.6 allocation=owl": ("wanda", "sparsegpt"),
    "sparsity=unstructured sparsity.ratio=0.4 method.step=0.2": ("surgeon_elements", "kobd"),
    "sparsity=rows_columns sparsity.ratio=0.3 method.step=0.1 between_shots=lora_surgeon between_shots.learning_rate=0.01": (
        "surgeon",
    ),
    "sparsity=2of4 method.step=0.25 between_shots=lora_surgeon between_shots.learning_rate=0.01": ("surgeon_elements",),
    "sparsity=2of4 method.step=0.25": ("surgeon_elements", "lobd"),
    "sparsity=rows_columns sparsity.ratio=0.3 method.step=0.1 method.correlation=summed": ("surgeon",),
    "sparsity=units sparsity.ratio=0.3": (
        "flap", "wanda_sp", "magnitude_sp", "random", "llm_pruner", "estimation_fusion", "mutual_information", "mi_fast",
    ),
    "sparsity=units sparsity.ratio=0.3 method.n_samples=16 method.max_trials=200": ("mi_paper",),
    "sparsity=units sparsity.ratio=0.3 allocation=global method.probes=16": ("fusion_learned", "fusion_uncertainty"),
    "sparsity=units sparsity.ratio=0.5 sparsity.counts=units": ("shortgpt", "sublayer_influence"),
    "sparsity=units sparsity.ratio=0.3 sparsity.compensation=least_squares method.step=0.15": ("flap", "llm_pruner"),
    "sparsity=units sparsity.ratio=0.3 sparsity.propagation=dense allocation=by_kind": ("flap", "wanda_sp"),
}  # fmt: skip
REPAIRED = ("layer", "block", "block_gp", "cross_block")
RECOVERED = (
    "method=llm_pruner sparsity=units sparsity.ratio=0.3",
    "method=wanda sparsity=2of4",
    "method=wanda sparsity=2of4 reconstruction.masked=project",
)
LORA = (
    "reconstruction=lora",
    *(f"reconstruction.{word}" for word in ("epochs=4", "batch=4", "warmup=2", "learning_rate=3e-3")),
)
SETTINGS = [
    "model=random", "calibration=tokens", "calibration.n_samples=8", "calibration.seq_len=24", "evaluation.corpora=[tokens]",
    "calibration.split={mask:train,held_out:validation,test:test}", "evaluation.held_out=[tokens]",
    "evaluation.seq_len=24", "evaluation.max_samples=4", "evaluation.error_samples=4",
    "runtime.device=cpu", "evaluation.speed=false", "runtime.workers=1", "runtime.threads=1",
]  # fmt: skip
TEXTS = [  # a method that compares kinds of text needs a tokenizer, which random models have not
    "model=embedded_llama", "calibration=austen", "calibration.n_samples=4", "calibration.seq_len=32",
    "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]", "evaluation.seq_len=32", "evaluation.max_samples=4",
    "evaluation.error_samples=2", "calibration.split={mask:validation,held_out:train,test:test}",
    "runtime.device=cpu", "evaluation.speed=false", "runtime.workers=1", "runtime.threads=1",
]  # fmt: skip
COMPARED = (
    "method=gprune domains=[kjv] sparsity=units sparsity.ratio=0.3",
    "method=gprune_learned method.steps=10 domains=[kjv] sparsity=units sparsity.ratio=0.3",
)
KEPT = ("repair/lm_loss", "ppl/", "error/", "mse/", "ratio/", "integrity/masked", "parameters/compact")


def jobs(tokens: Path, root: Path) -> dict[str, list[str]]:
    """Return the overrides of every trial by name."""
    found = {}
    common = [*SETTINGS, f"calibration.path={tokens}", f"paths.root={root}"]
    for family in ("llama", "opt"):
        for words, methods in PRUNED.items():
            for method in methods:
                own = [f"model.id={family}", f"method={method}", *words.split()]
                found[" ".join(own)] = [*common, *own]
        for repair in REPAIRED:
            own = [f"model.id={family}", "method=wanda", "sparsity=unstructured", "sparsity.ratio=0.5",
                   f"reconstruction={repair}"]  # fmt: skip
            short = [] if repair == "layer" else ["reconstruction.min_updates=8", "reconstruction.epochs=2"]
            found[" ".join(own)] = [*common, *own, *short]
        for words in RECOVERED:
            own = [f"model.id={family}", *words.split(), *LORA]
            found[" ".join(own)] = [*common, *own]
    return found | {words: [*TEXTS, f"paths.root={root}", *words.split()] for words in COMPARED}


def test_numbers_of_every_method_and_repair_stay(tmp_path: Path, golden) -> None:
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.random.RandomState(3).randint(3, 64, size=(60, 32)).astype("int32"))
    words = jobs(tokens, tmp_path / "home")
    plan = plan_study(composer(), list(words.values()), ["golden"])
    assert len(plan.trials) == len(words)
    order = Order(
        plan, save_plan(plan), planned_jobs(plan, set()), local_resources(plan.trials[0].config.runtime)
    )
    failures: list[str] = []
    Inline().run(order, lambda event: failures.append(str(event)) if event.what == "failed" else None)
    assert not failures
    found = {}
    for name, trial in zip(words, plan.trials, strict=True):
        metrics: dict[str, float] = {}
        revisions = {}
        for role in ("prune", "reconstruct", "evaluate"):
            if role in trial.stages:
                stage = plan.stages[trial.stages[role]]
                record = read_record(locate(plan.store, stage.kind, stage.key, stage.folder))
                metrics |= {k: float(v) for k, v in record.metrics.items() if k.startswith(KEPT)}
        for group in ("method", "reconstruction", "allocation"):
            revisions[group] = getattr(trial.config, group).fields.get("revision")
        found[name] = {"metrics": metrics, "revision": revisions}
    known = golden("numbers", found)
    assert known.keys() == found.keys()
    for name, row in found.items():
        assert row["revision"] == known[name]["revision"], name
        assert row["metrics"] == pytest.approx(known[name]["metrics"], rel=1e-3), name
