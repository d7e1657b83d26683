"""Progress of stages that finish a model block by block: one file per step in ``work``, laid over each other on resume."""

from __future__ import annotations

from typing import Any

from prunelab.errors import StoreError
from prunelab.store.context import Context
from prunelab.structures.state import Overlay, State, open_state, save_state

STATE = "state.safetensors"  # the result of a stage that changes weights


class Parts:
    """What an earlier attempt left: ``start`` (its parts, read layer by layer), ``done`` blocks, ``tables`` so far.

    Raises StoreError if a part is gone or cut: what it finished would silently be lost.
    """

    def __init__(self, context: Context, tables: dict[str, list[dict[str, Any]]]) -> None:
        self._context = context
        self.done, values = context.resume()
        self._steps: list[int] = values.get("steps", [])  # a step may finish several blocks
        self.tables = values.get("tables", tables)
        try:
            files = [open_state(context.work / _file(step)) for step in self._steps]
        except StoreError as error:
            raise StoreError(f"{error} To begin this stage from nothing: rm -r {context.work}") from error
        self.start = Overlay(tuple(files)) if files else None

    def save(self, done: int, part: State) -> None:
        """Keep a part and note that ``done`` blocks are finished; raises Interrupted if the job was asked to end."""
        if self._context.leads:
            save_state(part, self._context.work / _file(done))
        self.done = done
        self._steps.append(done)
        self._context.checkpoint(done, {"tables": self.tables, "steps": self._steps})


def _file(step: int) -> str:
    return f"part-{step}.safetensors"
