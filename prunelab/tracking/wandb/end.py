"""What a W&B run gets at its end: tables, plots, and artefacts by reference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunelab.tracking.base import Artefact
from prunelab.tracking.secret import one_line
from prunelab.tracking.wandb.row import clean, columns_and_data, short

Tables = Mapping[str, Sequence[Mapping[str, Any]]]
_BLOCKS, _SHOTS = ("block", "error", "stream"), ("shot", "achieved", None)
_LINES: dict[str, tuple[str, str, str | None]] = {
    "block": _BLOCKS, "blocks": _BLOCKS, "shot": _SHOTS, "shots": _SHOTS,
}  # fmt: skip


def send_tables(run: Any, tables: Tables) -> None:
    """Put tables into the summary, and plots of those that have an obvious line."""
    import wandb

    for name, rows in tables.items():
        if f"{name}s" in tables:  # the record's own table, whole, in place of the logged rows
            continue
        columns: list[Any]
        data: list[Any]
        columns, data = columns_and_data(rows)
        if not data:
            continue
        # the summary, not the history: a run that is told again keeps one of them
        run.summary[f"table/{short(clean(name))}"] = wandb.Table(
            columns=columns, data=data, allow_mixed_types=True
        )
        plot = _plot(wandb, name, columns, data)
        if plot is not None:
            run.log({f"plot/{short(clean(name))}": plot})


def _plot(wandb: Any, name: str, columns: list[str], data: list[list[Any]]) -> Any:
    """Error over blocks by stream, ratio over shots; None for tables without an obvious line."""
    if name not in _LINES or not set(filter(None, _LINES[name])) <= set(columns):
        return None
    x, y, stroke = _LINES[name]
    table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
    return wandb.plot.line(table, x=x, y=y, stroke=stroke, title=f"{y} by {x}")


def send_artefact(run: Any, item: Artefact, *, used: bool) -> Any:
    """Log an artefact whose files stay where they are: a manifest of URIs, sizes and digests is all that is sent.

    The manifest's digest is the MD5 that W&B checks on download; the store's sha256 stands beside it. Returns the
    SDK's artifact, whose ``wait`` raises what the server refuses.
    """
    import wandb

    artifact = wandb.Artifact(item.name, type=item.type, metadata=dict(item.metadata))
    for name, path in item.files.items():
        for entry in artifact.add_reference(path.absolute().as_uri(), name=name):
            entry.extra["sha256"] = item.metadata["sha256"][name]
    if used:
        # What `use_artifact` does with a new artefact, except that this neither waits for the server nor refuses
        # to work offline: the use is in the transaction log, and a later sync tells it. No run has made it.
        return run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    return run.log_artifact(artifact)


def within(seconds: float, what: str, call: Callable[[], str]) -> str:
    """Run ``call`` in a thread and wait at most ``seconds``; return what it returns, or why it did not come to its end.

    The SDK asks the server about each artefact before it logs it, and waits 20 s for one that hangs.
    """
    said: list[str] = []

    def run() -> None:
        try:
            said.append(call())
        except Exception as error:  # a third party's, told by its caller
            said.append(one_line(error))

    thread = threading.Thread(target=run, daemon=True, name="prunelab-wandb-end")
    thread.start()
    thread.join(seconds)
    return said[0] if said else f"{what} took longer than {seconds:g} s"
