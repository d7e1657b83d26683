"""A trial whose method compares kinds of text, from the config to its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from by_conf import option

from prunelab.config.compose import Composer
from prunelab.config.hydra_inside import open_loader
from prunelab.config.place import conf_folder
from prunelab.launch.command.study import plan_study
from prunelab.launch.run.base import Order
from prunelab.launch.run.inline import Inline
from prunelab.launch.run.runner import local_resources
from prunelab.plan.graph import jobs
from prunelab.plan.study import Plan, save_plan
from prunelab.store.layout import locate
from prunelab.store.record import Record, read_record

# drawn from the shortest split of each text: all of it is tokenized for four windows
SHORT = {"mask": "validation", "held_out": "train", "test": "test"}
SMALL = [
    "method=gprune", "sparsity=units", "domains=[short_kjv,short_pydocs]", "calibration.n_samples=4",
    "calibration.seq_len=32", "calibration.split={mask:validation,held_out:train,test:test}",
    "evaluation.corpora=[austen]", "evaluation.held_out=[]", "evaluation.max_samples=2", "evaluation.error_samples=2",
    "evaluation.seq_len=32", "runtime.device=cpu", "runtime.workers=1", "runtime.threads=1",
]  # fmt: skip


def run(root: Path, *words: str) -> tuple[Plan, list[dict[str, Record]]]:
    own = root / "conf" / "calibration"
    own.mkdir(parents=True)
    for text in ("kjv", "pydocs", "jargon"):
        spec = option("calibration", text, name=f"short_{text}", split=SHORT)
        (own / f"short_{text}.yaml").write_text(yaml.safe_dump(spec))
    trials = [[f"paths.root={root}", *SMALL, word] for word in words]
    plan = plan_study(Composer(open_loader(conf_folder(), root / "conf")), trials, ["test"])
    failures: list[str] = []
    order = Order(plan, save_plan(plan), jobs(plan, set()), local_resources(plan.trials[0].config.runtime))
    Inline().run(order, lambda event: failures.append(str(event)) if event.what == "failed" else None)
    assert not failures
    found = []
    for trial in plan.trials:
        stages = {role: plan.stages[key] for role, key in trial.stages.items()}
        found.append(
            {role: read_record(locate(plan.store, s.kind, s.key, s.folder)) for role, s in stages.items()}
        )
    return plan, found


def test_a_trial_with_domains_runs_and_other_text_gives_other_numbers(tmp_path: Path) -> None:
    _, (first, second) = run(tmp_path, "sparsity.ratio=0.2", "domains=[short_jargon,short_pydocs]")
    for record in (first, second):
        assert record["prune"].metrics["ratio/weights"] == pytest.approx(0.2, abs=0.01)
        assert record["prune"].metrics["integrity/violations"] == 0
    assert first["domain/short_pydocs"].metrics == second["domain/short_pydocs"].metrics
    one, two = (record["evaluate"].metrics["ppl/austen"] for record in (first, second))
    assert one != two
