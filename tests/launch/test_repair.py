"""A study of a repair through the real command line: over-fitting is measured on the text of the repair."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

STUDY = [
    "study=r", "method=magnitude", "sparsity=unstructured", "sparsity.ratio=0.5", "reconstruction=layer",
    "reconstruction_data=self_generated_mix", "reconstruction_data.parts.self_generated=0",
    "+reconstruction_data.parts.kjv=0,4", "evaluation.held_out=[kjv,jargon]", "evaluation.error_samples=8",
    "runtime.threads=1", "hydra/launcher=inline", "hydra.launcher.report=true", "-m",
]  # fmt: skip


@pytest.mark.slow
def test_the_fitted_text_is_the_repairs_own(
    prunelab: Callable[..., subprocess.CompletedProcess[str]], home: Path
) -> None:
    done = prunelab(*STUDY)
    assert done.returncode == 0, done.stdout + done.stderr
    report = home / "studies" / "r" / "report"
    rows = list(csv.DictReader((report / "results.csv").read_text().splitlines()))
    repairs = list(csv.DictReader((report / "repairs.csv").read_text().splitlines()))
    same, mixed = rows
    assert [row["reconstruction_data/kjv"] for row in rows] == ["", "4"]
    assert (same["error/reconstruction"], same["error/fitted"]) == ("", same["error/calibration"])
    assert mixed["error/fitted"] == mixed["error/reconstruction"] != mixed["error/calibration"]
    for row in rows:
        # eight samples are all of the text, so both stages measure the same thing
        own = [r for r in repairs if r["number"] == row["number"]][-1]
        assert float(row["error/fitted"]) == pytest.approx(float(own["error"]), rel=1e-4)
        assert float(row["mse/fitted"]) == pytest.approx(float(own["mse"]), rel=1e-4)
        index = float(row["error/held_out/jargon"]) / float(row["error/fitted"])
        assert float(row["overfit/jargon"]) == pytest.approx(index)
    (evaluated,) = [
        record
        for path in (home / "store" / "evaluate").glob("*/record.json")
        if "error/reconstruction" not in (record := json.loads(path.read_text()))["metrics"]
    ]
    streams = {row["stream"] for row in evaluated["tables"]["blocks"]}
    assert streams == {
        "calibration",
        "held_out/kjv",
        "held_out/jargon",
    }  # equal tokens: no second measurement
    assert (report / "amount_kjv.png").is_file()
