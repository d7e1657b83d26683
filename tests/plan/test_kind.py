"""The table of stage kinds: what it says is what is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from prunelab.plan.kind import (
    CALIBRATE,
    DENSE,
    EVALUATE,
    KINDS,
    PRUNE,
    RECONSTRUCT,
    STATISTICS,
    cost_of,
    in_order,
    kind_of,
    metric_prefix,
    position,
    shares_sums,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.home == "store"], ids=lambda k: k.name
)
def test_every_kind_of_the_store_has_a_module_that_runs_it(kind) -> None:
    tree = ast.parse((ROOT / f"{kind.module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    assert "run" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_order_is_that_of_the_table_and_strangers_come_after_the_evaluation() -> None:
    names = [kind.name for kind in in_order(["latency", EVALUATE, PRUNE, DENSE, PRUNE, "bytes"])]
    assert names == [DENSE, PRUNE, EVALUATE, "bytes", "latency"]
    assert position(EVALUATE) < position("latency") < position("track")


def test_a_stranger_is_like_the_row_of_its_own() -> None:
    assert kind_of("latency").name == "latency"
    assert kind_of("latency").column
    assert metric_prefix("latency", "latency") == "latency/"


def test_metrics_of_the_trial_bear_their_own_names() -> None:
    assert metric_prefix(PRUNE, "prune") == metric_prefix(RECONSTRUCT, "reconstruct") == ""
    assert metric_prefix(CALIBRATE, "test/austen") == "test/austen/"
    assert metric_prefix(DENSE, "dense") == "dense/"


def test_ranks_share_what_reads_the_tokens_itself() -> None:
    assert shares_sums(PRUNE, ["calibrate"], {})
    assert shares_sums(STATISTICS, ["calibrate"], {})
    assert not shares_sums(PRUNE, ["statistics"], {})
    assert not shares_sums(EVALUATE, ["calibrate"], {})
    assert not shares_sums(RECONSTRUCT, ["calibrate", "prune"], {})
    assert shares_sums(RECONSTRUCT, ["reconstruction", "prune"], {"scope": "model"})


def test_written_text_costs_more_than_text_that_is_read() -> None:
    assert cost_of(CALIBRATE, {"recipe": {}}).minutes > cost_of(CALIBRATE, {}).minutes
