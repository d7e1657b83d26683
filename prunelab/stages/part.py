"""Progress of stages that finish a model block by block: one file per step in ``work``, joined on resume."""

from __future__ import annotations

from typing import Any

from prunelab.store.context import Context
from prunelab.structures.state import SiteState, State, open_state, save_state

STATE = "state.safetensors"  # the result of a stage that changes weights


class Parts:
    """What an earlier attempt left: ``start`` (parts laid over each other), ``done`` blocks, ``tables`` so far."""

    def __init__(self, context: Context, tables: dict[str, list[dict[str, Any]]]) -> None:
        self._context = context
        self.done, values = context.resume()
        self.tables = values or tables
        self.start: State | None = None
        items: dict[str, SiteState] = {}
        for number in range(1, self.done + 1):
            path = context.work / f"part-{number}.safetensors"
            if path.exists():  # a step may finish several blocks
                part = open_state(path).load()
                items |= part.items
                self.start = State(part.model, items)

    def save(self, done: int, part: State) -> None:
        """Keep a part and note that ``done`` blocks are finished; raises Interrupted if the job was asked to end."""
        if self._context.leads:
            save_state(part, self._context.work / f"part-{done}.safetensors")
        self.done = done
        self._context.checkpoint(done, self.tables)
