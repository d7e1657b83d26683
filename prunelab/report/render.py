"""A study's folder -> report/index.html, report.md, results.csv and the figures. Offline, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from prunelab.errors import StoreError
from prunelab.report import curves, layers
from prunelab.report.collect import Study, collect
from prunelab.report.figure import png, styled
from prunelab.report.finding import QUESTION, chosen_ratio, facts, findings, integrity, missing
from prunelab.report.page import Picture, page
from prunelab.report.table import escape_markdown, frame_csv, markdown_table, result_tables


def render_report(study_folder: Path, out: Path | None = None) -> Path:
    """Write the report of a study, finished or not, into ``out`` (``<study>/report``); return its index.html.

    Raises:
        StoreError: the folder holds no readable plan, or ``out`` cannot be written.
    """
    study = collect(study_folder)
    folder = Path(out) if out is not None else Path(study_folder) / "report"
    pictures = draw(study)
    contents = {f"{picture.name}.png": picture.png for picture in pictures}
    contents["results.csv"] = frame_csv(study).encode("utf-8")
    contents["report.md"] = markdown(study, pictures).encode("utf-8")
    contents["index.html"] = page(study, pictures).encode("utf-8")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            _replace(folder / name, data)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error.strerror or error}. Choose another place."
        ) from error
    return folder / "index.html"


def draw(study: Study) -> list[Picture]:
    """All figures for which the study has numbers."""
    frame, ratio, made = study.frame, chosen_ratio(study), list[Picture]()

    def add(name: str, title: str, caption: str, make: Callable[[], Figure], aside: bool = False) -> None:
        made.append(Picture(name, title, caption, png(make()), aside))

    with styled():
        if frame["mean/ppl"].notna().any() and "error/calibration" in frame:
            add("tradeoff", "Tradeoff", TRADEOFF, lambda: curves.tradeoff(study))
            if len(study.corpora) > 1:
                caption = "The left panel above for each test corpus (calibrated on → tested on)."
                add("tradeoff_corpora", "Each corpus", caption, lambda: curves.tradeoff_corpora(study), True)
        if study.corpora:
            add("sparsity", "Perplexity over sparsity", SPARSITY, lambda: curves.over_sparsity(study))
        if ratio is not None and study.blocks["error"].notna().any():
            caption = BLOCKS.format(ratio=f"{ratio:g}")
            add("blocks", "Error over blocks", caption, lambda: layers.over_blocks(study, ratio))
        if study.held_out and "error/calibration" in frame:
            add("overfit", "Over-fitting index", OVERFIT, lambda: curves.overfit(study))
        if ratio is not None and len(study.sites):
            caption = f"Fraction of each linear's weights that was removed, by block, at ratio {ratio:g}."
            add("layers", "What each layer lost", caption, lambda: layers.lost(study, ratio))
        if study.stages["seconds"].notna().any():
            add("cost", "Cost", COST, lambda: layers.cost(study))
    return made


TRADEOFF = (
    "Relative error after the last block against perplexity (geometric mean of the test corpora); numbers at "
    "the points are removed fractions. Circled: on the Pareto front, that is, no other point removes as much "
    "with as little error and perplexity. A line that lies further right in the right panel than in the left "
    "fits the calibration text better than text it has not seen."
)
SPARSITY = "Calibrated on → tested on. Logarithmic; the dashed line is the dense model."
BLOCKS = (
    "Relative error of the hidden states after each block at ratio {ratio}: calibration text (solid), "
    "held-out text (dashed: mean of the corpora; band: their range)."
)
OVERFIT = (
    "Error on held-out text divided by error on calibration text, after the last block (calibrated on → "
    "held-out). 1: what was fitted on the calibration text holds outside it; above 1: it does not."
)
COST = (
    "Means over trials. A stage that several trials share was computed once and is counted in each of them; "
    "a trajectory counts the step from the ratio before."
)


def markdown(study: Study, pictures: list[Picture]) -> str:
    """The report as Markdown, with the figures as files beside it."""
    lines = [f"# {escape_markdown(study.name)}", "", QUESTION, ""]
    lines += [f"- {escape_markdown(text)}" for text in findings(study)] + [""]
    for table in result_tables(study):
        lines += [f"## Calibrated on {escape_markdown(table.facet)}", "", markdown_table(table), ""]
    for picture in pictures:
        lines += [
            f"## {picture.title}",
            "",
            picture.caption,
            "",
            f"![{picture.title}]({picture.name}.png)",
            "",
        ]
    violations, checked, names = integrity(study)
    lines += [
        "## Integrity",
        "",
        f"Masked weights that are not 0: {violations} (of {checked} trials checked).",
        "",
    ]
    lines += [f"- {escape_markdown(name)}" for name in names] + ([""] if names else [])
    absent = missing(study)
    if absent:
        lines += ["## Without a result", "", "| trial | state | reason | log |", "|---|---|---|---|"]
        for row in absent:
            texts = [escape_markdown(str(row[name])) for name in ("name", "status", "reason", "log")]
            lines.append(f"| {' | '.join(texts)} |")
        lines.append("")
    lines += ["## Study", "", *(f"- {name}: {escape_markdown(text)}" for name, text in facts(study)), ""]
    return "\n".join(lines)


def _replace(path: Path, data: bytes) -> None:
    """Write by rename: a reader who opens the page meanwhile sees the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
