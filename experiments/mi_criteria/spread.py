"""How much does the criterion matter? The spread over criteria of the relative rise of the loss, beside the model's size.

    python experiments/mi_criteria/spread.py RESULTS_CSV...

The loss is the mean over test corpora of the log perplexity in nats; its rise is relative to the dense model's loss; the
spread is the largest rise less the smallest over criteria. Seeds are averaged.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

SIZE = "dense/parameters/dense"


def rises(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per model and ratio, a column per method: the relative rise of the loss."""
    corpora = [column for column in frame.columns if column.startswith("ppl/")]
    pruned = np.log(frame[corpora]).mean(axis=1)
    dense = np.log(frame[[f"dense/{column}" for column in corpora]]).mean(axis=1)
    table = (
        frame.copy().assign(rise=pruned / dense - 1).pivot_table("rise", ["model", SIZE, "ratio"], "method")
    )
    order = [name for name in dict.fromkeys(frame["method"]) if name in table]
    return table[order].reset_index()


def spread(table: pd.DataFrame, without: tuple[str, ...] = ()) -> pd.Series:
    """The largest rise less the smallest, over methods other than ``without``."""
    methods = [name for name in table.columns if name not in ("model", SIZE, "ratio", *without)]
    return table[methods].max(axis=1) - table[methods].min(axis=1)


def main() -> None:
    """Print the table as Markdown, in per cent of the dense loss."""
    table = rises(pd.concat([pd.read_csv(path) for path in sys.argv[1:]], ignore_index=True))
    shown = table.assign(spread=spread(table), informed=spread(table, ("random",)))
    shown = shown.rename(columns={SIZE: "parameters", "informed": "without random"})
    print("| " + " | ".join(shown.columns) + " |\n" + "|---" * len(shown.columns) + "|")
    for _, row in shown.iterrows():
        cells = [row["model"], f"{row['parameters'] / 1e6:.2f} M", f"{row['ratio']:g}"]
        cells += [f"{100 * row[name]:.2f}" for name in shown.columns[3:]]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
