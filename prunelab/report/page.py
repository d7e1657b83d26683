"""The report as one HTML page: styles and pictures inline, no script, nothing fetched, all text escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from prunelab.metric import MASKED
from prunelab.report.collect import DONE, FAILED, Study
from prunelab.report.finding import QUESTION, chosen_ratio, facts, findings, integrity, missing
from prunelab.report.label import heading, in_words
from prunelab.report.protocol import measured
from prunelab.report.repair_table import repair_tables
from prunelab.report.speed_table import NOTE as SPEED_NOTE
from prunelab.report.speed_table import SMALL_PRINT, speed_tables
from prunelab.report.table import Cell, ResultTable, result_tables
from prunelab.report.units import NOTES, Told, told


@dataclass(frozen=True)
class Picture:
    """A figure on the page: its file's stem, heading, what to look for, PNG; ``aside`` folds it away."""

    name: str
    title: str
    caption: str
    png: bytes
    aside: bool = False


def page(study: Study, pictures: Sequence[Picture]) -> str:
    """The whole page as text."""
    sections = [("results", "Results", _results(study))]
    for picture in pictures:
        if picture.aside and len(sections) > 1:
            name, title, body = sections[-1]
            folded = f"<summary>{escape(picture.title)}</summary>{_figure(picture)}"
            sections[-1] = (name, title, f'{body}<details class="figures">{folded}</details>')
        else:
            sections.append((picture.name, picture.title, _figure(picture)))
    if speeds := speed_tables(study):
        tables = "".join(f"<h3>{escape(heading(table.facet))}</h3>{_table(table)}" for table in speeds)
        sections.append(
            ("speeds", "Speed and size", f'{tables}<p class="note">{escape(SPEED_NOTE + SMALL_PRINT)}</p>')
        )
    ratio = chosen_ratio(study)
    if ratio is not None and (tables := told(study, ratio)):
        sections.append(("units", "What methods say of units", _units(tables, ratio)))
    sections.append(("integrity", "Integrity", _integrity(study)))
    if missing(study):
        sections.append(("missing", "Without a result", _missing(study)))
    if study.protocols:
        sections.append(("protocols", "How each number was measured", _protocols(study)))
    sections.append(("study", "Study", _pairs(facts(study))))
    sections.append(("configs", "Config behind each row", _configs(study)))
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    bodies = "".join(
        f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>' for name, title, body in sections
    )
    style = (files("prunelab.report") / "style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(study.name)}: pruning study</title><style>{style}</style></head><body>"
        f"{_header(study)}<nav><div>{links}</div></nav><main>{bodies}"
        "<footer>Also in this folder: report.md, results.csv (a row per trial), long.csv (a row per number), protocols.csv, "
        "what happened after each block as CSV, each figure as PNG.</footer>"
        "</main></body></html>\n"
    )


def _header(study: Study) -> str:
    counts = study.frame["status"].value_counts()
    chips = [f'<span class="chip">{len(study.frame)} trials</span>']
    for status, look in ((DONE, "good"), (FAILED, "bad"), ("unfinished", "")):
        if counts.get(status):
            chips.append(f'<span class="chip {look}">{counts[status]} {status}</span>')
    violations, checked, _ = integrity(study)
    if checked:
        look, words = ("bad", f"{violations:,} mask violations") if violations else ("good", "masks intact")
        chips.append(f'<span class="chip {look}">{words}</span>')
    return (
        f'<header><div><h1>{escape(study.name)}</h1><p class="question">{escape(QUESTION)}</p>'
        f"{''.join(chips)}</div></header>"
    )


def _results(study: Study) -> str:
    said = "".join(f"<li>{escape(text)}</li>" for text in findings(study))
    parts = [f"<ul>{said}</ul>" if said else '<p class="note">No trial has finished yet.</p>']
    tables = result_tables(study)
    for table in tables:
        parts.append(f"<h3>{escape(heading(table.facet))}</h3>{_table(table)}")
    parts.append(
        '<p class="note">Perplexity on test text, lower is better; the best of each ratio is shaded; '
        "small print: spread over seeds (± sample standard deviation) and change from the dense model; mean: "
        "geometric mean over the corpora. "
        + ("Accuracy: of zero-shot tasks, higher is better. " if study.tasks else "")
        + "Removed: fraction of the prunable "
        "weights, of the decoder's parameters once compacted, of the units. Error: "
        "‖h<sub>dense</sub> − h<sub>pruned</sub>‖² ÷ ‖h<sub>dense</sub>‖² after the last block "
        "on calibration text (the mask's tokens), on a repair's own text where that is another, and, as a "
        "mean over corpora, on held-out text; over-fitting: held-out ÷ what was fitted to. "
        "Sizes such as 32 × 128: windows × tokens of calibration text.</p>"
    )
    return "".join(parts) + _repairs(study)


def _repairs(study: Study) -> str:
    parts = [f"<h3>Repairs, {escape(in_words(t.facet))}</h3>{_table(t)}" for t in repair_tables(study)]
    if not parts:
        return ""
    parts.append(
        '<p class="note">Last block: relative error on all of the text that a repair was fitted to, with the '
        "block as pruned and as repaired, both behind repaired blocks. Per block: geometric mean of after ÷ before. "
        "Language-model loss: nats per token on that text, of a repair that trains the whole model. "
        "Mean squared error: ‖h<sub>dense</sub> − h<sub>pruned</sub>‖² ÷ number of elements after the last block, "
        "in activation units, on the text that was fitted to and on held-out text. Against no repair: change of the "
        "relative error after the last block from the same mask without repair.</p>"
    )
    return "".join(parts)


def _units(tables: Sequence[Told], ratio: float) -> str:
    parts = [
        f'<p class="note">Trials at ratio {ratio:g}. Of long tables the first rows of every kind and block; all that '
        "the records keep is in this folder, units_TABLE.csv.</p>"
    ]
    for name in dict.fromkeys(table.table for table in tables):
        own = [table for table in tables if table.table == name]
        parts.append(f"<h3>{escape(own[0].title)}</h3>")
        if name in NOTES:
            parts.append(f'<p class="note">{escape(NOTES[name])}</p>')
        parts += [_told(table) for table in own]
    return "".join(parts)


def _told(table: Told) -> str:
    left = {place for place, cells in enumerate(zip(*table.rows, strict=True)) if _is_words(cells)}
    head = "".join(
        f"<th{_class(left=at in left)}>{escape(word)}</th>" for at, word in enumerate(table.header)
    )
    body = "".join(
        f"<tr>{''.join(f'<td{_class(left=at in left)}>{escape(cell)}</td>' for at, cell in enumerate(row))}</tr>"
        for row in table.rows
    )
    count = (
        f"{len(table.rows)} of {table.total:,} rows"
        if len(table.rows) < table.total
        else f"{table.total} rows"
    )
    cut = f'<p class="note">{escape(table.cut)}</p>' if table.cut else ""
    return (
        f"<details><summary>{escape(table.trial)} · {count}</summary>{cut}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )


def _is_words(cells: Iterable[str]) -> bool:
    return any(cell[:1].isalpha() and cell not in ("inf", "nan") for cell in cells)


def _table(table: ResultTable) -> str:
    edges, at = set(), 0
    for _, width in table.groups:
        edges.add(at)
        at += width
    edges.discard(0)
    groups, at = "", 0
    for title, width in table.groups:
        groups += f'<th colspan="{width}"{_class(edge=at in edges)}>{escape(title)}</th>'
        at += width
    header = "".join(
        f"<th{_class(left=place == 1, edge=place in edges)}>{escape(name)}</th>"
        for place, name in enumerate(table.header)
    )
    rows = "".join(
        f"<tr{_class(start=start)}>{''.join(_cell(cell, at, edges) for at, cell in enumerate(row))}</tr>"
        for row, start in zip(table.rows, table.starts, strict=True)
    )
    head = f'<thead><tr class="groups">{groups}</tr><tr>{header}</tr></thead>'
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _cell(cell: Cell, place: int, edges: set[int]) -> str:
    lines = cell.aside.split(" · ") if cell.aside and place != 1 else [cell.aside]
    aside = "".join(f"<small>{escape(line)}</small>" for line in lines if line)
    look = _class(left=place == 1, edge=place in edges, best=cell.best)
    return f"<td{look}>{escape(cell.text)}{aside}</td>"


def _class(**looks: bool) -> str:
    names = " ".join(name for name, on in looks.items() if on)
    return f' class="{names}"' if names else ""


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f"<figure><figcaption>{escape(picture.caption)}</figcaption>"
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}"></figure>'
    )


def _integrity(study: Study) -> str:
    violations, checked, names = integrity(study)
    if not checked:
        return '<p class="note">No finished trial has counted its masked weights yet.</p>'
    masked = study.frame[MASKED].dropna().astype(float).sum() if MASKED in study.frame else 0
    text = f"{masked:,.0f} masked weights of {checked} trials were read back: "
    if not violations:
        return f"<p>{escape(text)}all are exactly 0 (violations: 0).</p>"
    text += f"{violations:,} are not 0. The numbers of these trials are not to be trusted:"
    return f"<p>{escape(text)}</p><ul>{''.join(f'<li>{escape(name)}</li>' for name in names)}</ul>"


def _protocols(study: Study) -> str:
    same, header, rows = measured(study)
    cells = ["".join(f'<td class="left">{escape(text)}</td>' for text in row) for row in rows]
    head = "".join(f'<th class="left">{escape(word)}</th>' for word in header)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return (
        '<p class="note">One row for all that was measured alike. long.csv names the protocol of each number, protocols.csv '
        f"says what it was. Where it applies, the same everywhere: {escape(same)}.</p>"
        f'<div class="scroll"><table class="protocols"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _missing(study: Study) -> str:
    head = "".join(f'<th class="left">{name}</th>' for name in ("trial", "state", "reason", "log"))
    rows = "".join(
        "<tr>"
        + "".join(f'<td class="left wrap">{escape(str(row[name]))}</td>' for name in _MISSING)
        + "</tr>"
        for row in missing(study)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


_MISSING = ("name", "status", "reason", "log")


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in pairs)}</dl>"


def _configs(study: Study) -> str:
    rows = study.frame.to_dict("records")
    return "".join(_config(row, study.trials[row["number"]]) for row in rows)


def _config(row: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    state = "" if row["status"] == DONE else f'<span class="state {row["status"]}">{row["status"]}</span>'
    keys = [(role, str(key)) for role, key in trial["stages"].items()]
    pairs = [("overrides", " ".join(trial.get("overrides", ()))), ("trial key", str(trial["key"])), *keys]
    config = json.dumps(trial["config"], indent=1, ensure_ascii=False, default=str)
    return (
        f"<details><summary>{escape(str(trial['number']))} · {escape(str(trial['name']))}{state}</summary>"
        f"{_pairs(pairs)}<pre>{escape(config)}</pre></details>"
    )
