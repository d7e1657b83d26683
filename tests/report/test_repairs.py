"""Repairs in the report: which error is fitted, over-fitting, tables and figures that appear with what they need."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from prunelab.report import render
from prunelab.report.amount import amounts
from prunelab.report.collect import collect
from prunelab.report.derive import fitted_rows
from prunelab.report.figure import COLOURS, INK
from prunelab.report.key import key_of, tracks
from prunelab.report.render import draw, render_report
from prunelab.report.repair_table import repair_tables
from prunelab.report.sheet import blocks_csv, repairs_csv
from prunelab.report.table import markdown_table, result_tables, results_csv

ALWAYS = {"tradeoff", "tradeoff_corpora", "blocks", "layers", "cost"}
REPAIRS = {"repairs", "overfit_blocks", "gain"}


def figures(folder: Path) -> set[str]:
    return {picture.name for picture in draw(collect(folder))}


def parse(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_over_fitting_is_measured_against_what_was_fitted(repaired):
    frame = collect(repaired(masks=("wanda",))).frame.set_index("variant")
    plain, mixed = frame.loc["wanda + block_gp"], frame.loc["wanda + block_gp + mix"]
    assert plain["error/fitted"] == plain["error/calibration"] == pytest.approx(0.03)
    assert mixed["error/fitted"] == mixed["error/reconstruction"] == pytest.approx(0.033)
    assert mixed["error/calibration"] == pytest.approx(0.03)
    assert [plain["overfit/austen"], plain["overfit/kjv"]] == pytest.approx([2, 3])
    assert [mixed["overfit/austen"], mixed["overfit/kjv"]] == pytest.approx([1 / 1.1, 1.5 / 1.1])
    assert mixed["mean/overfit"] == pytest.approx(1.25 / 1.1)
    assert [mixed["mse/fitted"], mixed["mean/mse_held_out"]] == pytest.approx([7 * 0.033, 7 * 0.0375])


def test_blocks_have_their_index_and_seeds(repaired):
    study = collect(repaired(masks=("wanda",), repairs=("none", "layer"), seeds=(0, 1)))
    assert len(fitted_rows(study.blocks)) == 6 * 3
    mixed = study.frame.set_index("variant").loc["wanda + layer + mix"].iloc[0]["number"]
    own = study.blocks[study.blocks["number"] == mixed]
    assert own[own["stream"] == "held_out/kjv"]["overfit"].tolist() == pytest.approx([1.5 / 1.1] * 3)
    assert own[own["stream"] == "reconstruction"]["overfit"].tolist() == pytest.approx([1.0] * 3)
    rows = parse(blocks_csv(study))
    assert len(rows) == len(study.blocks)
    assert {row["seed"] for row in rows if row["variant"] == "wanda + none"} == {"0", "1"}
    assert {float(row["error_before"]) / float(row["error"]) for row in parse(repairs_csv(study))} == {2.0}


def test_csv_says_what_a_repair_fitted_to(repaired):
    rows = {row["variant"]: row for row in parse(results_csv(repaired(masks=("wanda",))))}
    bare, plain, mixed = (rows[f"wanda + {name}"] for name in ("none", "layer", "layer + mix"))
    columns = ["reconstruction", "reconstruction_data"]
    columns += ["reconstruction_data/same", "reconstruction_data/self_generated"]
    assert (bare["n_samples"], bare["seq_len"], bare["test/austen/seq_len"]) == ("32", "128", "999")
    assert [bare[name] for name in columns] == ["none", "", "", ""]
    assert [plain[name] for name in columns] == ["layer", "same", "32", ""]
    assert [mixed[name] for name in columns] == ["layer", "mix", "32", "16"]
    assert float(mixed["overfit/kjv"]) == pytest.approx(1.5 / 1.1)
    assert float(mixed["mse/held_out/kjv"]) == pytest.approx(7 * float(mixed["error/held_out/kjv"]))


def test_the_table_of_repairs(repaired):
    (table,) = repair_tables(collect(repaired(seeds=(0, 1))))
    assert sum(width for _, width in table.groups) == len(table.header) == 9
    rows = {row[1].text: [cell.text for cell in row[2:]] for row in table.rows}
    assert rows["wanda + none"] == ["—", "—", "—", "0.7350", "1.8375", "—", "—"]
    assert rows["wanda + layer"] == ["0.1050", "0.0525", "0.50", "0.3675", "0.9188", "-50.0%", "-50.0%"]
    assert rows["wanda + layer + mix"][-2:] == ["-50.0%", "-75.0%"]
    assert [row[1].text for row, start in zip(table.rows, table.starts, strict=True) if start] == [
        "magnitude + none", "wanda + none",
    ]  # fmt: skip
    assert next(row for row in table.rows if row[1].text == "wanda + layer")[3].aside == "± 0.00354"
    assert "after ÷ before" in markdown_table(table)


def test_a_repair_of_the_whole_model_shows_its_loss(repaired):
    study = collect(repaired(repairs=("none", "layer", "lora"), data={"same": None}))
    (table,) = repair_tables(study)
    assert sum(width for _, width in table.groups) == len(table.header) == 11
    assert ("language-model loss", 2) in table.groups
    rows = {row[1].text: [cell.text for cell in row[2:]] for row in table.rows}
    assert rows["wanda + lora"][:5] == ["—", "—", "—", "4.0000", "3.0250"]
    assert rows["wanda + layer"][3:5] == rows["wanda + none"][3:5] == ["—", "—"]
    assert rows["wanda + lora"][-2:] == ["-75.0%", "-75.0%"]
    assert {row["variant"] for row in parse(repairs_csv(study))} == {"magnitude + layer", "wanda + layer"}


def test_a_study_of_such_repairs_alone_is_drawn(repaired):
    folder = repaired(repairs=("none", "lora"), data={"same": None})
    assert figures(folder) == ALWAYS | REPAIRS - {"gain"}
    assert "language-model loss" in render_report(folder).read_text(encoding="utf-8")
    assert not (folder / "report" / "repairs.csv").exists()


def test_masks_stand_together_in_the_main_table(repaired):
    (table,) = result_tables(collect(repaired()))
    starts = [row[1].text for row, start in zip(table.rows, table.starts, strict=True) if start]
    assert starts == ["dense", "magnitude + none", "wanda + none"]
    assert table.header[-4:] == ("calibration", "own text", "held-out", "over-fitting")


def test_figures_appear_with_what_they_need(fabricate, repaired, monkeypatch: pytest.MonkeyPatch):
    assert figures(repaired(at="mix")) == ALWAYS | REPAIRS | {"amount_self_generated"}
    # the others are made, too, but not turned into pixels: that takes the time, and here names are asked for
    monkeypatch.setattr(render, "png", lambda figure: b"")
    plain = figures(fabricate(methods=("lobd", "kobd"), ratios=(0.1, 0.3), sources=("kjv",)))
    assert not plain & (REPAIRS | {"amount_n_samples"})
    one = {"same": None}
    assert figures(repaired(at="a", data=one)) == ALWAYS | REPAIRS
    assert figures(repaired(at="b", data=one, ratios=(0.3, 0.5))) == ALWAYS | REPAIRS | {
        "sparsity",
        "overfit",
    }
    bare = figures(repaired(at="c", data=one, repairs=("none",)))
    assert bare == ALWAYS | {"sparsity", "overfit"}
    sizes = [(8, 64), (32, 64), (8, 128)]
    alone = figures(repaired(at="d", data=one, repairs=("block_gp",), masks=("wanda",), sizes=sizes))
    assert alone == ALWAYS | {"overfit_blocks", "gain", "amount_n_samples", "amount_seq_len"}


def test_an_amount_begins_at_none_and_joins_what_is_equal_otherwise(repaired):
    data = {f"mix{n}": {"same": None, "self_generated": n} for n in (0, 8, 32)} | {"same": None}
    data |= {"other": {"self_generated": 8}}
    study = collect(repaired(masks=("wanda",), repairs=("none", "block_gp", "cross_block"), data=data))
    axis, same = amounts(study, 0.5)
    assert [axis.title, same.title] == ["windows of self_generated", "windows of the mask's tokens"]
    assert sorted(same.rows["amount"]) == [0, 0, 32, 32]  # `other` beside what has 8 generated windows too
    assert set(axis.rows["repair"]) == {"block_gp", "cross_block"}
    # `other` fits to no window of the mask: nothing else is equal to it
    assert sorted(axis.rows[axis.rows["repair"] == "block_gp"]["amount"]) == [0, 0, 8, 32]


def test_amounts_of_calibration_text_know_source_and_length(repaired):
    sizes = [(n, length) for n in (8, 32) for length in (64, 128)]
    study = collect(
        repaired(masks=("wanda",), repairs=("none", "layer"), sizes=sizes, sources=("austen", "kjv"))
    )
    assert study.facets == ["austen", "kjv"]
    windows, length = (next(a for a in amounts(study, 0.5) if a.name == n) for n in ("n_samples", "seq_len"))
    assert len(windows.rows) == len(length.rows) == len(study.frame)
    rest = windows.rows[windows.rows["variant"].str.contains("mix")]["rest"]
    assert set(rest) == {f"self_generated: 16, tokens per window: {n}" for n in (64, 128)}


def test_looks_tell_repairs_masks_and_text_apart(repaired, fabricate):
    key = key_of(collect(repaired()))
    looks = [repr(sorted(look.items(), key=str)) for look in key.looks.values()]
    assert len(set(looks)) == len(looks) == 14
    assert {key.looks[f"{mask} + none"]["color"] for mask in ("magnitude", "wanda")} == {INK}
    assert [title for title, _ in key.groups] == ["repair", "mask", "fitted to"]
    plain = key_of(collect(fabricate(at="plain", methods=("lobd", "kobd"), ratios=(0.1,))))
    assert [look["color"] for look in plain.looks.values()] == list(COLOURS[:2])
    assert plain.factors is None


def test_tracks_lead_from_the_bare_mask_through_its_repairs(repaired):
    study = collect(repaired(masks=("wanda",)))
    names = [track for track, _ in tracks(study, key_of(study))]
    repairs = ("layer", "block_gp", "cross_block")
    assert names == [
        ["wanda + none", *(f"wanda + {name}{data}" for name in repairs)] for data in ("", " + mix")
    ]


def test_unfinished_and_broken_repairs_are_drawn(repaired):
    def odd(name: str, record: dict) -> None:
        if name.startswith("layer"):
            record["metrics"] |= {"error/calibration": 0.0, "error/reconstruction": "inf", "ppl/kjv": "inf"}
            record["tables"]["blocks"][0] |= {"error": "nan"}
        if name.startswith("cross"):
            del record["metrics"]["mse/calibration"]

    skip = [f"block_gp-{data}-wanda-0.5-austen-32x128-s0" for data in ("same", "mix")]
    folder = repaired(change=odd, skip=skip, ratios=(0.5, 0.7))
    text = render_report(folder).read_text(encoding="utf-8")
    assert "evaluate is not finished" in text
    assert math.isinf(collect(folder).frame.set_index("name").loc[
        "layer-mix-wanda-0.5-austen-32x128-s0", "error/fitted"
    ])  # fmt: skip
    files = {path.name for path in (folder / "report").iterdir()}
    assert {"repairs.png", "gain.png", "overfit_blocks.png", "repairs.csv", "blocks.csv"} <= files


def test_nothing_finished_is_no_figure(repaired):
    names = [f"layer-same-wanda-0.5-austen-{n}x128-s0" for n in (8, 32)]
    sizes = [(8, 128), (32, 128)]
    folder = repaired(masks=("wanda",), repairs=("layer",), data={"same": None}, sizes=sizes, skip=names)
    assert figures(folder) == {"cost"}
    assert "No trial has finished yet" in render_report(folder).read_text(encoding="utf-8")
