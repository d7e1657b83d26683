"""Compacted models are timed beside the dense one, in the record and in the report of every trial of units."""

from __future__ import annotations

from pathlib import Path

import pytest
from by_conf import composer

from prunelab.evaluation.speed import Speed, checkpoint_bytes, speedup
from prunelab.launch.command.study import StudyError, plan_study
from prunelab.launch.run.base import Order
from prunelab.launch.run.inline import Inline
from prunelab.launch.run.runner import local_resources
from prunelab.metric import is_clock
from prunelab.models.load import load_decoder
from prunelab.plan.graph import jobs
from prunelab.plan.study import Plan, save_plan
from prunelab.report.collect import collect
from prunelab.report.page import page
from prunelab.report.speed_table import speed_tables
from prunelab.report.table import frame_csv
from prunelab.stages.speed import numbers
from prunelab.store.layout import locate
from prunelab.store.record import Record, read_record
from prunelab.structures.checkpoint import save_checkpoint
from prunelab.structures.state import open_state
from prunelab.structures.surgery import compact

SMALL = [
    "calibration.n_samples=4", "calibration.seq_len=32", "calibration.split={mask:validation,held_out:train,test:test}",
    "evaluation.corpora=[austen]", "evaluation.held_out=[]", "evaluation.max_samples=2", "evaluation.error_samples=2",
    "evaluation.seq_len=32", "sparsity.ratio=0.5", "runtime.device=cpu", "runtime.workers=1", "runtime.threads=1",
]  # fmt: skip
LINES = ("method=magnitude", "sparsity=rows_columns", "evaluation.speed=true")
UNITS, WEIGHTS = ("method=magnitude_sp", "sparsity=units"), ("method=magnitude", "sparsity=unstructured")


def plan_of(root: Path, *trials: tuple[str, ...]) -> Plan:
    return plan_study(composer(), [[f"paths.root={root}", *SMALL, *words] for words in trials], ["test"])


def folders(plan: Plan, number: int) -> dict[str, Path]:
    stages = {role: plan.stages[key] for role, key in plan.trials[number].stages.items()}
    return {role: locate(plan.store, s.kind, s.key, s.folder) for role, s in stages.items()}


def test_units_are_timed_unless_a_trial_says_no_and_others_if_it_says_so(tmp_path: Path) -> None:
    yes, no = ("evaluation.speed=true",), ("evaluation.speed=false",)
    trials = [UNITS, UNITS + no, WEIGHTS, WEIGHTS + yes, ("sparsity=rows_columns", "method=surgeon")]
    stages = [trial.stages for trial in plan_of(tmp_path, *trials).trials]
    assert ["speed" in one for one in stages] == [True, False, False, True, False]
    for one, other in ((0, 1), (2, 3)):  # no other key has a clock in it
        assert {**stages[one], "speed": ""} == {**stages[other], "speed": ""}


def test_how_long_texts_are_is_in_the_key_and_has_to_fit_the_model(tmp_path: Path) -> None:
    short, batch = ("evaluation.speed_prompt=64",), ("evaluation.speed_batch=2",)
    keys = {t.stages["speed"] for t in plan_of(tmp_path, UNITS, UNITS + short, UNITS + batch).trials}
    assert len(keys) == 3
    long = ("evaluation.speed_prompt=100000",)
    with pytest.raises(
        StudyError, match=r"speed_prompt, evaluation.speed_tokens.* together at most .*speed=false"
    ):
        plan_of(tmp_path, UNITS + long)
    assert plan_of(tmp_path, WEIGHTS + long).trials


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, Path]]:
    short = ("evaluation.speed_prompt=16", "evaluation.speed_tokens=4", "evaluation.speed_rounds=3")
    plan = plan_of(tmp_path_factory.mktemp("speed"), UNITS + short, WEIGHTS + short, LINES + short)
    failures: list[str] = []
    order = Order(plan, save_plan(plan), jobs(plan, set()), local_resources(plan.trials[0].config.runtime))
    Inline().run(order, lambda event: failures.append(str(event)) if event.what == "failed" else None)
    assert not failures
    return plan, folders(plan, 0)


def record_of(timed: tuple[Plan, dict[str, Path]]) -> Record:
    return read_record(timed[1]["speed"])


def test_speeds_ratios_and_bytes_are_metrics_with_their_protocol(timed: tuple[Plan, dict[str, Path]]) -> None:
    record = record_of(timed)
    found = record.metrics
    phases = ("prefill", "decode")
    every = ("speed", "speed/dense", "speedup", "speedup/low", "speedup/high")
    names = {f"{name}/{phase}" for name in every for phase in phases}
    assert set(found) == names | {"bytes/compact", "bytes/dense"}
    for phase in phases:
        assert (
            0 < found[f"speedup/low/{phase}"] <= found[f"speedup/{phase}"] <= found[f"speedup/high/{phase}"]
        )
    assert {name for name in found if is_clock(name)} == names
    how = record.protocols["speed/decode"]
    assert {key: how[key] for key in ("threads", "batch", "prompt", "new_tokens", "rounds")} == {
        "threads": 1, "batch": 1, "prompt": 16, "new_tokens": 4, "rounds": 3,
    }  # fmt: skip
    assert how["device"]
    assert "device" not in record.protocols["bytes/compact"]
    assert 0 < record.cost["compact/decode_least_s"] <= record.cost["compact/decode_most_s"]


def test_bytes_are_those_of_the_checkpoint(timed: tuple[Plan, dict[str, Path]], tmp_path: Path) -> None:
    plan = timed[0]
    model = plan.stages[plan.trials[0].stages["speed"]].runtime["model"]
    for number in (0, 2):  # units, rows and columns
        places, out = folders(plan, number), tmp_path / str(number)
        decoder = load_decoder(model, device="cpu")
        save_checkpoint(decoder, out / "dense", {"id": "m", "revision": None})
        compact(decoder, open_state(places["prune"] / "outputs" / "state.safetensors"))
        save_checkpoint(decoder, out / "compact", {"id": "m", "revision": None})
        found = read_record(places["speed"]).metrics
        assert found["bytes/compact"] < 0.75 * found["bytes/dense"]
        for name in ("dense", "compact"):
            header = checkpoint_bytes(out / name) - found[f"bytes/{name}"]
            assert 0 < header < 0.02 * found["bytes/dense"]


def test_the_report_shows_them_for_trials_that_were_timed_alone(timed: tuple[Plan, dict[str, Path]]) -> None:
    study = collect(timed[0].folder)
    assert set(study.frame["status"]) == {"done"}
    rows = [row for table in speed_tables(study) for row in table.rows]
    assert len(rows) == 2
    ((ratio, method, *cells),) = [row for row in rows if "magnitude_sp" in row[1].text]
    ((_, _, *lines),) = [row for row in rows if "magnitude_sp" not in row[1].text]
    assert float(lines[0].text.replace(",", "")) > 0
    assert (ratio.text, "magnitude_sp" in method.text) == ("0.5", True)
    found = record_of(timed).metrics
    assert cells[1].text == f"{found['speedup/prefill']:.2f}×"
    assert cells[-2].text.endswith("%")
    assert "Speed and size" in page(study, [])
    header, *_ = frame_csv(study).splitlines()
    names = header.split(",")
    clocks = [is_clock(name) for name in names]
    assert clocks == sorted(clocks)
    assert {"speed/prefill", "speedup/decode", "bytes/compact"} <= set(names)


def test_ratios_are_taken_round_by_round() -> None:
    dense = Speed(2, 10, 5, (2.0, 4.0, 3.0), (1.0, 1.0, 9.0), 100, 400)
    small = Speed(2, 10, 5, (1.0, 1.0, 1.5), (0.5, 0.5, 3.0), 50, 200)
    assert numbers(dense, small) == {
        "speed/prefill": 20.0, "speed/dense/prefill": 20 / 3, "speed/decode": 20.0, "speed/dense/decode": 10.0,
        "speedup/prefill": 2.0, "speedup/low/prefill": 2.0, "speedup/high/prefill": 3.0,
        "speedup/decode": 2.0, "speedup/low/decode": 2.0, "speedup/high/decode": 2.5,
        "bytes/compact": 200, "bytes/dense": 400,
    }  # fmt: skip
    assert speedup([3.0], [2.0]) == (1.5, 1.5, 1.5)
