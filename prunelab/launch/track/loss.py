"""What a W&B server has not of a study that was to be tracked, why, and what to do: from the notes beside the runs."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from prunelab.launch.run.failure import read_failure
from prunelab.launch.track.mirror import is_finished, tracking_folder
from prunelab.plan.study import Plan, Trial
from prunelab.tracking.base import run_id
from prunelab.tracking.note import UNOPENED, Note, is_live, read_note
from prunelab.tracking.wandb.probe import is_wanted

_SHOWN = 5  # reasons; and of each the names of the first three trials


@dataclass(frozen=True)
class Loss:
    """Trials whose runs the server has not, or not all of, for one ``reason``; ``mend`` says what to do about it."""

    reason: str
    mend: str
    trials: tuple[str, ...]


def losses(plan: Plan) -> list[Loss]:
    """Return what did not arrive, by reason, of trials that are to be tracked and are over; none if all is there."""
    found: dict[tuple[str, str], list[str]] = {}
    for trial in plan.trials:
        if not is_wanted(trial.config.tracking):
            continue
        folder, run = tracking_folder(plan), run_id(trial.key)
        note = read_note(folder, run)
        reason = _reason(plan, trial, note)
        if reason and not is_live(folder, run):
            send = f"send them with: prunelab sync {plan.folder}"
            if note is not None and note.refused:
                send = f"first put right what the reason names (the key; or tracking.*, and run the study again); {send}"
            found.setdefault((reason, send), []).append(trial.name)
    return [Loss(reason, mend, tuple(names)) for (reason, mend), names in found.items()]


def show_losses(plan: Plan, console: Console) -> None:
    """Say how many of a study's runs W&B lacks, why, and what to do; nothing if it has them all."""
    found = losses(plan)
    if not found:
        return
    wanted = sum(is_wanted(trial.config.tracking) for trial in plan.trials)
    lines = [f"W&B lacks {sum(len(loss.trials) for loss in found)} of {wanted} runs, or a part of them"]
    for loss in found[:_SHOWN]:
        names = ", ".join(loss.trials[:3]) + (", ..." if len(loss.trials) > 3 else "")
        lines.append(f"    {len(loss.trials)} ({names}): {loss.reason}")
    if len(found) > _SHOWN:
        lines.append(f"    and {len(found) - _SHOWN} other reasons")
    lines += dict.fromkeys(f"    {loss.mend}" for loss in found)
    console.print("\n".join(lines), style="yellow", highlight=False, soft_wrap=True, markup=False)


def _reason(plan: Plan, trial: Trial, note: Note | None) -> str:
    """Return why a run is not all at the server, "" if it is or if its trial is still to come to its end."""
    if note is None:
        return "no run was opened; the trial's log may say why" if is_finished(plan, trial) else ""
    if note.sent:
        return ""
    if note.mode == UNOPENED:
        return f"no run could be opened: {note.reason}"
    if note.ended == "open":
        over = is_finished(plan, trial) or any(read_failure(plan, key) for key in trial.stages.values())
        return "the process that told it ended before it" if over else ""
    return f"not sent: {note.reason}" if note.mode == "offline" else note.reason
