"""Progress of stages that change weights step by step: a state per step in ``work``, laid over each other on resume."""

from __future__ import annotations

from typing import Any

from prunelab.errors import StoreError
from prunelab.store.context import Context
from prunelab.structures.state import Overlay, State, StateReader, open_state, save_state

STATE = "state.safetensors"  # the result of a stage that changes weights
Tables = dict[str, list[dict[str, Any]]]


class Parts:
    """What an earlier attempt left: ``start`` (its parts, read layer by layer), ``done`` steps, ``tables`` so far.

    Raises StoreError if a part is gone or cut: what it finished would silently be lost.
    """

    def __init__(self, context: Context, tables: Tables) -> None:
        self._context = context
        self.done, values = context.resume()
        self._steps: list[int] = values.get("steps", [])  # a step may finish several blocks
        self.tables: Tables = values.get("tables", tables)
        try:
            files = [open_state(context.work / _file(step)) for step in self._steps]
        except StoreError as error:
            raise StoreError(f"{error} To begin this stage from nothing: rm -r {context.work}") from error
        self.start: StateReader | None = Overlay(tuple(files)) if files else None

    def begin(self, start: StateReader, done: int, tables: Tables) -> None:
        """Go on from what another stage has finished."""
        self.start, self.done, self.tables = start, done, tables

    def save(self, done: int, part: State, *, whole: bool = False) -> None:
        """Keep a part and note that ``done`` steps are finished; a ``whole`` one takes the place of those before.

        Raises Interrupted if the job was asked to end.
        """
        if self._context.leads:
            save_state(part, self._context.work / _file(done))
        replaced = self._steps if whole else []
        self.done, self._steps = done, [done] if whole else [*self._steps, done]
        self._context.checkpoint(done, {"tables": self.tables, "steps": self._steps})
        if self._context.leads:
            for step in replaced:
                (self._context.work / _file(step)).unlink(missing_ok=True)


def _file(step: int) -> str:
    return f"part-{step}.safetensors"
