"""What does text that a mask was not chosen on cost? Methods calibrated on each corpus, tested on all.

    python experiments/gprune_generalization/transfer.py [--unseen CORPUS] RESULTS_CSV...

Costs are perplexity over the dense model's, minus one, in per cent. ``own``: on the corpus calibrated on, ``others``:
on the others, the geometric mean of the quotients over tests and calibrations; ``mean``: both together; ``worst``: the
dearest test of each calibration, averaged likewise, and ``the worst``: the dearest of all. ``gain``: 1 - perplexity
of ``mean`` over that of the first method named, in per cent. With ``--unseen`` only tests on that corpus count, of masks
calibrated on others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

STUDY = "gprune_generalization"


def read(path: Path) -> pd.DataFrame:
    """A study's results; one that is not of this name names its variants, as other studies may have the same."""
    frame, study = pd.read_csv(path), path.absolute().parents[1].name
    return frame.copy() if study == STUDY else frame.assign(variant=f"{study}: " + frame["variant"])


def logs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per trial and test corpus: ``log``, the log of perplexity over the dense model's."""
    corpora = [column.removeprefix("ppl/") for column in frame.columns if column.startswith("ppl/")]
    rows = [
        frame[["variant", "ratio", "calibration"]].assign(
            test=corpus, log=np.log(frame[f"ppl/{corpus}"] / frame[f"dense/ppl/{corpus}"])
        )
        for corpus in corpora
    ]
    return pd.concat(rows, ignore_index=True)


def summary(long: pd.DataFrame) -> pd.DataFrame:
    """A row per ratio and variant, in logs; variants in the order given."""
    keys = ["ratio", "variant"]
    own = long[long["calibration"] == long["test"]].groupby(keys, sort=False)["log"].mean()
    others = long[long["calibration"] != long["test"]].groupby(keys, sort=False)["log"].mean()
    worst = long.groupby([*keys, "calibration"], sort=False)["log"].max().groupby(keys, sort=False)
    whole = long.groupby(keys, sort=False)["log"].mean()
    table = pd.DataFrame(
        {"own": own, "others": others, "mean": whole, "worst": worst.mean(), "the worst": worst.max()}
    )
    return table.reset_index().sort_values("ratio", kind="stable")


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--unseen")
    parser.add_argument("results", type=Path, nargs="+")
    asked = parser.parse_args()
    long = logs(pd.concat([read(path) for path in asked.results], ignore_index=True))
    if asked.unseen:
        long = long[(long["test"] == asked.unseen) & (long["calibration"] != asked.unseen)]
    columns = ["own", "others", "mean", "worst", "the worst"]
    print("| ratio | method | " + " | ".join(columns) + " | gain |\n" + "|---" * (len(columns) + 3) + "|")
    for ratio, rows in summary(long).groupby("ratio"):
        base = rows["mean"].iloc[0]
        for _, row in rows.iterrows():
            cells = ["" if pd.isna(row[name]) else f"{100 * np.expm1(row[name]):.1f}" for name in columns]
            gain = 100 * -np.expm1(row["mean"] - base) + 0.0  # no -0
            print(f"| {ratio:g} | {row['variant']} | " + " | ".join(cells) + f" | {gain:+.1f} |")


if __name__ == "__main__":
    main()
