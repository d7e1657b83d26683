"""A corpus from outside the package is one YAML file: it is swept, calibrated on, measured on and shown."""

from __future__ import annotations

import csv
from pathlib import Path

CORPUS = """
name: diary
source: text
path: {path}
revision: null
column: text
split: {{mask: train, held_out: validation, test: test}}
sampler: random_windows
n_samples: 4
seq_len: 32
joiner: " "
digest: null
"""


def test_a_corpus_of_ones_own_in_a_sweep(prunelab, home: Path, tmp_path: Path) -> None:
    rows = (
        f'{{"text": "day {day}: the river was high and the mill stood still, we counted {day} boats"}}\n'
        for day in range(900)
    )
    (tmp_path / "diary.jsonl").write_text("".join(rows))
    folder = tmp_path / "conf" / "calibration"
    folder.mkdir(parents=True)
    (folder / "diary.yaml").write_text(CORPUS.format(path=tmp_path / "diary.jsonl"))
    done = prunelab(
        "--config-dir", str(folder.parent), "-m", "study=diary", "calibration=austen,diary", "method=magnitude",
        "evaluation.corpora=[austen,diary]", "hydra.launcher.report=true",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    study = home / "studies" / "diary"
    with next(study.rglob("results.csv")).open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [row["calibration"] for row in found] == ["austen", "diary"]
    assert all(float(row["ppl/diary"]) > 1 for row in found)
    status = prunelab("status", "diary", module="prunelab.cli", small=False)
    assert "magnitude-0.3-diary-s0" in status.stdout
