"""From a plan to what a person sees: dry run, progress, results, report, closing table, exit code."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from prunelab.errors import PrunelabError
from prunelab.launch.monitor.preview import preview
from prunelab.launch.monitor.view import View
from prunelab.launch.run.base import Launcher
from prunelab.launch.run.runner import finished, local_resources, run_study
from prunelab.launch.track.loss import show_losses
from prunelab.plan.graph import jobs
from prunelab.plan.study import Plan, left_out


def drive(plan: Plan, launcher: Launcher, console: Console, *, dry_run: bool, report: bool) -> int:
    """Run a plan (or say what would run) and return the exit code: 0, 1 if a trial failed, 130 after Ctrl-C."""
    resources = local_resources(plan.trials[0].config.runtime)
    done = finished(plan)
    left = jobs(plan, done)
    line = f"[bold]{plan.study}[/]: {len(plan.trials)} trials, {len(plan.stages)} stages, {len(done)} of them done"
    console.print(line, highlight=False)
    console.print(
        f"store {plan.store}\nstudy {plan.folder}", highlight=False, soft_wrap=True, markup=False, style="dim"
    )
    gone = left_out(plan)
    if gone > 1:  # one: a single trial after another
        words = f"the study's plan before had {gone} trials that this one has not; the report leaves them out, the store keeps"
        words += " their results. Another name keeps both reports: study=NAME"
        console.print(words, style="yellow", highlight=False, soft_wrap=True, markup=False)
    if dry_run:
        console.print(preview(plan, done, left, resources))
        places = launcher.describe(plan, left)
        if places is not None:
            console.print(places)
        return 0
    view = View(console, len(left))
    try:
        with view.shown():
            outcome = run_study(plan, launcher, resources, view)
    except KeyboardInterrupt:
        console.print(f"\n{launcher.stopped}", style="yellow", markup=False, soft_wrap=True)
        return 130
    if launcher.detached:
        words = f"follow with: prunelab attach {plan.folder}   (or status, cancel, logs, retry, report)"
        console.print(words, highlight=False, soft_wrap=True, markup=False)
        return 1 if outcome.failed else 0
    ran = ", ".join(f"{count} {kind}" for kind, count in outcome.ran.items()) or "no stage"
    console.print(f"ran {ran} in {outcome.seconds:.1f} s", highlight=False)
    if report:
        _report(outcome.plan_file, console)
    show_losses(plan, console)
    for job, values in {**outcome.failed, **outcome.skipped}.items():
        console.print(
            f"{job}: {values['reason']}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        if "log" in values:
            console.print(f"    log: {values['log']}", markup=False, highlight=False, soft_wrap=True)
    return 0 if outcome.ok else 1


def _report(plan_file: Path, console: Console) -> None:
    """Report on the plan that was run: another command may have put its own under the study's name meanwhile."""
    # late: pandas and matplotlib take a second that a dry run and --cfg do not owe
    from prunelab.report.closing import closing
    from prunelab.report.collect import collect
    from prunelab.report.render import render_report

    page, reason = None, ""
    try:
        study = collect(plan_file)
    except (PrunelabError, OSError) as error:
        console.print(f"no report: {error}", style="red", markup=False, soft_wrap=True)
        return
    try:
        page = render_report(study)
    except (
        PrunelabError,
        OSError,
    ) as error:  # a full disk, or somebody else's study: the table needs no place
        reason = str(error)
    console.print(closing(study))
    words, style = (f"report {page}", "") if page else (f"no report: {reason}", "red")
    console.print(words, style=style, highlight=False, soft_wrap=True, markup=False)
