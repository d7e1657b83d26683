"""What a method says of its units: rows by block and kind, as many as there is room for, and what was cut is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunelab.models.random import random_decoder
from prunelab.passes import units
from prunelab.passes.shots import prune
from prunelab.passes.step import StepReport
from prunelab.pattern.units import Units
from prunelab.stats.unit_view import UnitView


@dataclass(frozen=True)
class Last:
    """Keeps the first units and lists those that go."""

    name: str = "last"
    revision: int = 1
    step: None = None
    scope = "unit"
    needs = ()
    supports = ("units",)

    def study(self, view: UnitView) -> tuple[Tensor, str]:
        return -torch.arange(view.count, dtype=torch.float64), f"{view.kind} {view.block}"

    def explain(self, evidence: str, gone: Tensor) -> dict[str, list[dict[str, Any]]]:
        return {"gone": [{"unit": unit, "seen": evidence} for unit in gone.nonzero()[:, 0].tolist()]}


def told(schedule: list[float], allocation: str = "uniform", **fields: Any) -> list[StepReport]:
    seen: list[StepReport] = []
    prune(
        random_decoder("llama", intermediate_size=200), Last(), None, schedule, pattern=Units(**fields), seed=0,
        batch_size=1, allocation=allocation, propagation="dense", on_step=lambda report, _: seen.append(report),
    )  # fmt: skip
    return seen


def test_rows_come_by_kind_and_block_and_the_evidence_is_their_own() -> None:
    by_blocks, whole = told([0.3], kinds=("neurons",)), told([0.3], "global", kinds=("neurons",))
    assert [report.block for report in by_blocks] == [0, 1]
    assert [report.block for report in whole] == [None]
    for report in (*by_blocks, *whole):
        rows = report.tables["units/gone"]
        assert rows
        assert all(row["seen"] == f"{row['kind']} {row['block']}" and row["shot"] == 1 for row in rows)


def test_a_table_is_cut_and_says_so() -> None:
    (report,) = told([0.5], "global", kinds=("neurons",), counts="units")
    rows, cut = report.tables["units/gone"], report.tables["units/cut"]
    assert [(row["block"], row["unit"]) for row in rows] == [
        (block, 100 + place) for block in (0, 1) for place in range(units.MOST_ROWS)
    ]
    where = {"shot": 1, "kind": "neurons", "table": "units/gone", "rows": 100, "kept": units.MOST_ROWS}
    assert cut == [{**where, "block": 0}, {**where, "block": 1}]


def test_each_shot_tells_of_the_units_that_go_in_it() -> None:
    one, two = told([0.1, 0.2], kinds=("neurons",), counts="units")
    first, second = (
        {(row["block"], row["unit"]) for row in report.tables["units/gone"]} for report in (one, two)
    )
    assert len(first) == len(second) == 40
    assert not first & second
    assert {row["shot"] for row in two.tables["units/gone"]} == {2}
