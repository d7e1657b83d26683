"""What a person sees of ``prunelab sync``: a line per run that was sent or failed, torn files, a sum."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from prunelab.launch.track.sync import Sent, Sync
from prunelab.plan.study import Plan
from prunelab.tracking.wandb.probe import is_wanted

_STYLES = {"sent": "green", "failed": "red", "torn": "yellow", "live": "cyan"}


def show_sync(plan: Plan, console: Console, timeout_s: float | None) -> int:
    """Sync a study and say what became of each run; return 1 if one could not be sent, else 0."""
    counts: Counter[str] = Counter()
    torn = 0
    for sent in Sync(plan, timeout_s).run():
        counts[sent.what] += 1
        torn += len(sent.torn)
        _line(console, sent)
    words = {"sent": "sent", "already": "sent before", "live": "running, left alone", "failed": "failed"}
    parts = [f"{counts[what]} {text}" for what, text in words.items() if counts[what]]
    if torn:
        parts.append(f"{torn} torn {'file' if torn == 1 else 'files'} skipped")
    if not parts:
        wanted = any(is_wanted(trial.config.tracking) for trial in plan.trials)
        parts = ["no trial has anything to tell W&B yet"]
        if not wanted:
            parts = ["no W&B runs here; tracking=wandb makes them"]
    elif not counts["sent"] and not counts["failed"]:
        parts.append("nothing to do")
    console.print(f"{plan.study}: {', '.join(parts)}", markup=False, highlight=False)
    return 1 if counts["failed"] else 0


def _line(console: Console, sent: Sent) -> None:
    for path in sent.torn:
        console.print(f"torn: {path} (no run in it; skipped)", style="yellow", markup=False, soft_wrap=True)
    if sent.what != "already":
        text = f"{sent.what}: {sent.run}  {sent.detail}"
        console.print(text, style=_STYLES[sent.what], markup=False, highlight=False, soft_wrap=True)
