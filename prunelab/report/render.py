"""A study's folder -> report/index.html, report.md, tables as CSV and the figures. Offline, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from prunelab.errors import StoreError
from prunelab.files import make_folder, replace_file
from prunelab.metric import MEAN_ACC, MEAN_PPL, ON_FITTED
from prunelab.report import amount, curves, layers, repairs
from prunelab.report.aggregate import by_cell
from prunelab.report.collect import Study, collect
from prunelab.report.figure import png, styled
from prunelab.report.finding import QUESTION, chosen_ratio, facts, findings, integrity, missing
from prunelab.report.key import key_of
from prunelab.report.label import heading, in_words
from prunelab.report.page import Picture, page
from prunelab.report.protocol import measured
from prunelab.report.redundancy import has_ranked, ranked
from prunelab.report.repair_table import repair_tables
from prunelab.report.sheet import blocks_csv, long_csv, protocols_csv, repairs_csv
from prunelab.report.speed_table import NOTE, speed_tables
from prunelab.report.table import escape_markdown, frame_csv, markdown_table, result_tables
from prunelab.report.units import has_spectrum, spectrum, units_csv


def render_report(study: Study | Path, out: Path | None = None) -> Path:
    """Write the report of a study, finished or not, into ``out`` (``<study>/report``); return its index.html.

    ``study``: what was collected, or where: the study's folder, or the file of one of its plans.

    Raises:
        StoreError: the folder holds no readable plan, or ``out`` cannot be written.
    """
    study = study if isinstance(study, Study) else collect(study)
    folder = Path(out) if out is not None else study.folder / "report"
    pictures = draw(study)
    contents = {f"{picture.name}.png": picture.png for picture in pictures}
    contents["results.csv"] = frame_csv(study).encode("utf-8")
    contents["long.csv"] = long_csv(study).encode("utf-8")
    contents["protocols.csv"] = protocols_csv(study).encode("utf-8")
    contents["blocks.csv"] = blocks_csv(study).encode("utf-8")
    if len(study.repairs):
        contents["repairs.csv"] = repairs_csv(study).encode("utf-8")
    contents |= {name: text.encode("utf-8") for name, text in units_csv(study)}
    contents["report.md"] = markdown(study, pictures).encode("utf-8")
    contents["index.html"] = page(study, pictures).encode("utf-8")
    try:
        make_folder(folder)
        for name, data in contents.items():
            replace_file(folder / name, data, sync=False)
    except (OSError, StoreError) as error:
        cause = error.__cause__ or error
        raise StoreError(
            f"{folder} cannot be written: {getattr(cause, 'strerror', None) or cause}. Choose another place: "
            f"prunelab report {study.folder} --out FOLDER."
        ) from error
    return folder / "index.html"


def draw(study: Study) -> list[Picture]:
    """All figures for which the study has numbers."""
    frame, ratio, made = study.frame, chosen_ratio(study), list[Picture]()
    key = key_of(study)
    one_ratio = by_cell(frame, [MEAN_PPL.name])["ratio"].nunique() <= 1

    def add(name: str, title: str, caption: str, make: Callable[[], Figure], aside: bool = False) -> None:
        made.append(Picture(name, title, caption, png(make()), aside))

    with styled():
        if frame[MEAN_PPL.name].notna().any() and ON_FITTED in frame:
            points = AT_REPAIRS if key.factors and one_ratio else AT_RATIOS
            score = "what pruning costs (geometric mean of the test perplexities over the dense model's, minus one)"
            caption = TRADEOFF.format(score=score, points=points)
            add("tradeoff", "Tradeoff", caption, lambda: curves.tradeoff(study))
            if len(study.corpora) > 1:
                caption = "The left panel above for each test corpus (calibration text or model → test text)."
                add("tradeoff_corpora", "Each corpus", caption, lambda: curves.tradeoff_corpora(study), True)
            if study.tasks:
                caption = TRADEOFF.format(score="accuracy (mean of the tasks)", points=points)
                add(
                    "tradeoff_accuracy",
                    "Tradeoff in accuracy",
                    caption,
                    lambda: curves.tradeoff(study, MEAN_ACC),
                )
        if ratio is not None:
            for name, title, caption, make in repair_pictures(study, ratio):
                add(name, title, caption, make)
        by_ratio = not (one_ratio and repairs.has_repairs(study))  # one ratio makes no curve
        if study.corpora and by_ratio:
            add("sparsity", "Perplexity over sparsity", SPARSITY, lambda: curves.over_sparsity(study))
        if ratio is not None and study.blocks["error"].notna().any() and key.factors is None:
            caption = BLOCKS.format(ratio=f"{ratio:g}", near=curves.fitted_name(study))
            add("blocks", "Error over blocks", caption, lambda: layers.over_blocks(study, ratio))
        if study.held_out and ON_FITTED in frame and by_ratio:
            caption = OVERFIT.format(near=curves.fitted_name(study))
            add("overfit", "Over-fitting index", caption, lambda: curves.overfit(study))
        if ratio is not None and len(study.sites):
            caption = f"Fraction of each linear's weights that was removed, by block, at ratio {ratio:g}."
            add("layers", "What each layer lost", caption, lambda: layers.lost(study, ratio))
        if ratio is not None and has_spectrum(study, ratio):
            caption = SPECTRUM.format(ratio=f"{ratio:g}")
            add("spectrum", "Redundancy of units", caption, lambda: spectrum(study, ratio))
        if ratio is not None and has_ranked(study, ratio):
            caption = RANKED.format(ratio=f"{ratio:g}")
            add("ranked", "Redundancy spectrum of each layer", caption, lambda: ranked(study, ratio))
        if study.stages["seconds"].notna().any():
            add("cost", "Cost", COST, lambda: layers.cost(study))
    return made


Plan = tuple[str, str, str, Callable[[], Figure]]  # name, title, caption, how to draw it


def repair_pictures(study: Study, ratio: float) -> Iterator[Plan]:
    """Figures of repairs and of amounts of text, where trials differ in them."""
    at = f"At ratio {ratio:g}"
    measured = study.frame.get(ON_FITTED, pd.Series(dtype=float)).notna().any()
    if measured and repairs.compares_repairs(study):
        yield "repairs", "By repair", f"{at}. {REPAIRS}", lambda: repairs.by_repair(study, ratio)
    if measured:
        for one in amount.amounts(study, ratio):
            title = f"Over {one.title}"
            yield (
                f"amount_{one.name}",
                title,
                f"{at}. {AMOUNT}",
                lambda one=one: amount.over_amount(study, one),
            )
    if not repairs.has_repairs(study) or study.blocks["error"].isna().all():
        return
    if key_of(study).factors is not None:
        name, make = "blocks", lambda: repairs.errors_over_blocks(study, ratio)
        yield name, "Error over blocks", f"{at}. {REPAIR_BLOCKS}", make
    if study.held_out:
        name, make = "overfit_blocks", lambda: repairs.overfit_over_blocks(study, ratio)
        yield name, "Over-fitting index over blocks", f"{at}. {OVERFIT_BLOCKS}", make
    if study.repairs["error"].notna().any():
        make = lambda: repairs.gain_over_blocks(study, ratio)  # noqa: E731
        yield "gain", "What each repair leaves of a block's error", f"{at}. {GAIN}", make


TRADEOFF = (
    "Relative error after the last block against {score}; {points} "
    "Circled: on the Pareto front, that is, no other point removes as much "
    "with as little error and as good a score. A line that lies further right in the right panel than in the left "
    "fits the text it was fitted to better than text it has not seen."
)
AT_RATIOS = "numbers at the points are removed fractions."
AT_REPAIRS = "grey lines lead from the bare mask through its repairs."
SPARSITY = "Calibration text or model → test text. Logarithmic; the dashed line is the dense model."
BLOCKS = (
    "Relative error of the hidden states after each block at ratio {ratio}: {near} (solid), "
    "held-out text (dashed: mean of the corpora; band: their range)."
)
OVERFIT = (
    "Error on held-out text divided by error on {near}, after the last block (calibration text or model → "
    "held-out). 1: what was fitted holds outside its text; above 1: it does not."
)
REPAIRS = (
    "Relative error after the last block on the text that was fitted to and on each held-out corpus (one "
    "logarithmic scale), and perplexity; each line is a mask from no repair on. Dashed: the dense model."
)
AMOUNT = (
    "Errors after the last block, mean held-out error over the error on what was fitted to, and perplexity (geometric "
    "mean), with tasks also accuracy, over an amount of text; the steps of the axis are the values of the study. "
    "Lines join trials that are equal in all else."
)
REPAIR_BLOCKS = (
    "Relative error of the hidden states after each block, logarithmic: on text that was fitted to (a repair's own, "
    "where it has some) and on held-out text (mean of the corpora)."
)
OVERFIT_BLOCKS = (
    "Error on held-out text (mean of the corpora) over error on the text that was fitted to, after each block. "
    "1: the fit holds outside its text."
)
GAIN = (
    "The error of each block against the dense model on the text of its repair: as repaired, over as pruned behind "
    "the same repaired blocks. 1: the repair changed nothing."
)
SPECTRUM = (
    "Normalised mutual information of each unit with its most redundant partner in its block, over the blocks, as the first "
    "shot found it (mutual information, ratio {ratio}). High: much can go for little; near what chance gives: "
    "nothing is redundant."
)
RANKED = (
    "The same values unit by unit, sorted in each block (ratio {ratio}): how many per cent of the units share at least so much "
    "with another one. A line that stays high on its way to the right: much of the block is redundant."
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
        lines += [f"## {escape_markdown(heading(table.facet))}", "", markdown_table(table), ""]
    for table in repair_tables(study):
        lines += [f"## Repairs, {escape_markdown(in_words(table.facet))}", "", markdown_table(table), ""]
    speeds = speed_tables(study)
    for table in speeds:
        lines += [
            f"## Speed and size, {escape_markdown(in_words(table.facet))}",
            "",
            markdown_table(table),
            "",
        ]
    lines += [escape_markdown(NOTE), ""] if speeds else []
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
    same, header, rows = measured(study)
    if rows:
        lines += ["## How each number was measured", ""]
        lines += [f"Where it applies, the same everywhere: {escape_markdown(same)}.", ""]
        lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows] + [""]
    lines += ["## Study", "", *(f"- {name}: {escape_markdown(text)}" for name, text in facts(study)), ""]
    return "\n".join(lines)
