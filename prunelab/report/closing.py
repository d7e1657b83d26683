"""The table that ends a study in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunelab.report.collect import FAILED, Study, collect
from prunelab.report.finding import integrity, missing
from prunelab.report.label import in_words
from prunelab.report.table import ResultTable, result_tables


def closing(study: Study | Path | str) -> RenderableType:
    """Perplexities and other scores by method and ratio for each calibration, then what failed, why, and where its log is.

    Names are shown literally: brackets in them are no markup.
    """
    study = study if isinstance(study, Study) else collect(study)
    parts: list[RenderableType] = [_results(one) for one in result_tables(study)]
    absent = missing(study)
    if absent:
        parts.append(_missing(absent))
    violations, _, names = integrity(study)
    if violations:
        text = f"{violations} masked weights are not zero in {', '.join(names)}: do not trust these numbers."
        parts.append(Text(text, style="bold red"))
    return Group(*parts)


def _results(table: ResultTable) -> Table:
    scores = [(title, count) for title, count in table.groups if title in table.scores]
    last = 2 + sum(count for _, count in scores)
    made = Table(
        title=Text(f"{' and '.join(title for title, _ in scores)}, {in_words(table.facet)}", style="bold"),
        title_justify="left",
        min_width=44,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, name in enumerate(table.titles[:last]):
        made.add_column(Text(name), justify="left" if index == 1 else "right", overflow="fold")
    for place, row in enumerate(table.rows):
        texts = [Text(cell.text, style="bold green" if cell.best else "") for cell in row[:last]]
        for text, cell in zip(texts, row, strict=False):
            if cell.aside.startswith("±"):
                text.append(f" {cell.aside.split(' · ')[0]}", style="dim")
        if row[1].aside[:1].isdigit():  # the number of seeds; reasons stand in the table below
            texts[1].append(f" ({row[1].aside.split(';')[0]})", style="dim")
        ends = place + 1 == len(table.rows) or table.starts[place + 1]
        made.add_row(*texts, end_section=ends)
    return made


def _missing(rows: list[dict]) -> Table:
    title = Text("without a result", style="bold")
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("trial", "state", "reason", "log"):
        made.add_column(name, overflow="fold")
    for row in rows:
        style = "red" if row["status"] == FAILED else "yellow"
        state = Text(str(row["status"]), style=style)
        made.add_row(Text(str(row["name"])), state, Text(str(row["reason"])), Text(str(row["log"])))
    return made
