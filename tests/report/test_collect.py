import json
import math
from pathlib import Path

import pytest

from prunelab.errors import StoreError
from prunelab.report.collect import collect


def test_a_row_per_trial_with_metrics_costs_and_tables(fabricate):
    study = collect(fabricate(methods=("surgeon", "lobd"), ratios=(0.1, 0.2)))
    assert list(study.frame["number"]) == list(range(8))
    assert set(study.frame["status"]) == {"done"}
    assert study.corpora == ["austen", "kjv", "jargon", "pydocs"]
    assert study.held_out == study.corpora
    assert (study.facets, study.variants) == (["austen", "kjv"], ["surgeon", "lobd"])
    row = study.frame.iloc[0]
    assert row["dense/ppl/austen"] == 21.4
    assert row["calibrate/tokens"] == 4096
    assert row["cost/prune/host"] == "node7"
    assert row["mean/ppl"] == pytest.approx(math.prod(row[f"ppl/{c}"] for c in study.corpora) ** 0.25)
    assert row["mean/overfit"] == pytest.approx(row["mean/held_out"] / row["error/calibration"])
    assert len(study.blocks) == 8 * 4 * 5
    assert len(study.sites) == 8 * 4 * 7


def test_cost_of_a_trajectory_counts_every_step_before(fabricate):
    frame = collect(fabricate(methods=("surgeon",), ratios=(0.1, 0.2), sources=("austen",))).frame
    first, second = frame.iloc[0], frame.iloc[1]
    shared = first["cost/dense/seconds"] + first["cost/calibrate/seconds"]
    assert first["cost/seconds"] == pytest.approx(shared + first["cost/prune/seconds"] + 9, abs=1e-6)
    steps = first["cost/prune/seconds"] + second["cost/prune/seconds"]
    assert second["cost/seconds"] == pytest.approx(shared + steps + 9, abs=1e-6)


def test_failed_and_unfinished_trials_keep_their_rows_and_reasons(fabricate):
    folder = fabricate(
        methods=("surgeon",),
        sources=("austen",),
        fail=["surgeon-0.4-austen-s0"],
        skip=["surgeon-0.2-austen-s0"],
    )
    frame = collect(folder).frame.set_index("ratio")
    assert frame.loc[0.1, "status"] == "done"
    assert (frame.loc[0.2, "status"], frame.loc[0.2, "reason"]) == ("unfinished", "prune is not finished")
    assert frame.loc[0.4, "status"] == "failed"
    assert frame.loc[0.4, "reason"] == "prune: ModelError: A is <singular> after damping"
    assert frame.loc[0.4, "log"] == "/logs/surgeon-0.4-austen-s0.out"
    assert frame.loc[0.5, "status"] == "done"  # its own stages are there


def test_a_trial_behind_a_failed_step_is_failed_too(fabricate):
    names = [f"surgeon-{ratio}-austen-s0" for ratio in (0.2, 0.3)]
    folder = fabricate(methods=("surgeon",), sources=("austen",), fail=names[:1], skip=names[1:])
    assert list(collect(folder).frame["status"])[:3] == ["done", "failed", "failed"]


def test_nothing_finished_yet(fabricate):
    folder = fabricate(
        methods=("surgeon",), ratios=(0.1,), sources=("austen",), skip=["surgeon-0.1-austen-s0"]
    )
    study = collect(folder)
    assert study.corpora == []
    assert study.blocks.empty
    assert math.isnan(study.frame["mean/ppl"].iloc[0])


def test_infinite_perplexity_comes_back_from_its_string(fabricate):
    def explode(name, record):
        record["metrics"]["ppl/kjv"] = "inf"

    study = collect(fabricate(methods=("magnitude",), ratios=(0.5,), sources=("austen",), change=explode))
    assert study.frame["ppl/kjv"].iloc[0] == math.inf
    assert study.frame["mean/ppl"].iloc[0] == math.inf


def test_torn_records_count_as_unfinished(fabricate):
    folder = fabricate(methods=("lobd",), ratios=(0.1,), sources=("austen",))
    store = Path(json.loads((folder / "plan.json").read_text())["store"])
    (record,) = store.glob("evaluate/*/record.json")
    record.write_text(record.read_text()[:100])
    frame = collect(folder).frame
    assert frame["status"].tolist() == ["unfinished"]
    assert str(record) in frame["reason"].iloc[0]


def test_a_number_under_a_key_that_is_not_its_own_is_not_shown(fabricate):
    folder = fabricate(methods=("lobd",), ratios=(0.1,), sources=("austen",))
    store = Path(json.loads((folder / "plan.json").read_text())["store"])
    (path,) = store.glob("evaluate/*/record.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": {"slug": "of another"}}))
    frame = collect(folder).frame
    assert frame["status"].tolist() == ["unfinished"]
    assert "holds what belongs under key" in frame["reason"].iloc[0]


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"trials": [], "stages": {}}', '{"trials": 3, "stages": {}}']
)
def test_unreadable_plans_say_so(tmp_path, text):
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(StoreError, match=str(tmp_path)):
        collect(tmp_path)


def test_stages_that_another_study_named_are_found_by_their_key(fabricate):
    folder = fabricate(methods=("lobd",), ratios=(0.1,), sources=("austen",))
    store = Path(json.loads((folder / "plan.json").read_text())["store"])
    for path in list(store.glob("*/*")):
        path.rename(path.with_name(f"renamed{path.name[-17:]}"))
    assert collect(folder).frame["status"].tolist() == ["done"]


def test_a_failure_that_a_later_run_mended_is_forgotten(fabricate):
    folder = fabricate(methods=("lobd",), ratios=(0.1,), sources=("austen",))
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "failures").mkdir()
    for key in plan["stages"]:
        (folder / "failures" / f"{key[:16]}.json").write_text('{"reason": "old", "log": ""}')
    assert collect(folder).frame["status"].tolist() == ["done"]
