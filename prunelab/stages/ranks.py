"""Several processes that do one job: rank 0 runs it as ever, the others help with the stages that have sums to share.

Rank 0 alone looks at the store, takes locks, keeps progress, writes results and records; what is done, what a stage
goes on from and when it stops is its decision. For a stage whose sums are shared it posts an order, plain JSON, in a
torch TCPStore; every other rank runs the same function with a context that reads the same files and writes none.
Between orders the others only look for the next one, for as long as it takes.

They find rank 0 by a note on the file system that all nodes share anyway, which holds its host and a port that was
free: no port has to be guessed, and no name of a node to be resolved that is no host's name.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from prunelab.distributed.group import Ranks
from prunelab.errors import PrunelabError, StageError
from prunelab.files import replace_file
from prunelab.store.context import Context, Input, Interrupted
from prunelab.store.record import read_record

# srun starts all tasks at once, but their imports may come from a slow disk
_ASSEMBLY = timedelta(minutes=10)
_LEAVE_S = 20.0
_LOOK_S = 0.2


class Coordinator:
    """Rank 0, which tells the others what to do; ``start`` tells this start of the job from earlier ones in the same ``note``."""

    def __init__(self, note: Path, start: str, size: int) -> None:
        self._note, self._start, self._size = note, start, size
        self._group: Ranks | None = None
        self._store: Any = None
        self._orders = 0

    @contextmanager
    def stage(self, module: str, identity: Mapping[str, Any], context: Context) -> Iterator[None]:
        """While open, all ranks run this stage, ``module``'s function ``run``.

        Raises StageError with the reason if another rank failed or is gone.
        """
        group = self._assemble()
        self._post(_order(module, identity, context))
        context.group = group
        try:
            yield
            group.meet()
        except Interrupted:
            raise  # all left at the same checkpoint
        except BaseException as error:
            group.fail(str(error))
            raise

    def end(self) -> None:
        """Send the others home, and give them time to go: srun ends those that are left when rank 0 fails."""
        if self._group is None:
            replace_file(self._note, json.dumps({"start": self._start, "end": True}).encode("utf-8"))
            return
        self._post({})
        farewells = [f"left/{rank}" for rank in range(1, self._size) if rank not in self._group.lost]
        end = time.monotonic() + _LEAVE_S
        while farewells and not self._store.check(farewells) and time.monotonic() < end:
            time.sleep(_LOOK_S / 4)
        self._note.unlink(missing_ok=True)

    def _assemble(self) -> Ranks:
        if self._group is None:
            host = "localhost" if os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1" else socket.gethostname()
            self._store = TCPStore(
                "localhost", 0, self._size, is_master=True, timeout=_ASSEMBLY, wait_for_workers=False
            )
            place = {"start": self._start, "host": host, "port": self._store.port}
            replace_file(self._note, json.dumps(place).encode("utf-8"))
            with suppress(RuntimeError):  # what is missing is said below
                self._store.wait([f"here/{rank}" for rank in range(1, self._size)])
            missing = [rank for rank in range(1, self._size) if not self._store.check([f"here/{rank}"])]
            self._store.set("complete", "" if missing else "yes")
            if missing:
                raise StageError(
                    f"ranks {missing} of {self._size} did not come within {_ASSEMBLY}; see their logs beside this one."
                )
            self._group = Ranks(self._store, 0, self._size)
        return self._group

    def _post(self, order: Mapping[str, Any]) -> None:
        self._store.set(f"order/{self._orders}", json.dumps(order))
        self._orders += 1


def join(note: Path, start: str, rank: int, size: int) -> int:
    """Be rank ``rank`` of ``size`` until rank 0 says it is over; return the exit code.

    A failure here is told to rank 0, which ends the job; only if rank 0 is gone does this return 1.
    """
    importlib.import_module("prunelab.stages.prune")  # slow; meanwhile rank 0 looks at the store
    place = _find_coordinator(note, start)
    if "end" in place:
        return 0
    try:
        store = TCPStore(
            place["host"], place["port"], size, is_master=False, timeout=_ASSEMBLY, wait_for_workers=False
        )
        store.set(f"here/{rank}", socket.gethostname())
        if not _wait(store, "complete"):
            return 0
        group = Ranks(store, rank, size)
        number = 0
        while order := json.loads(_wait(store, f"order/{number}")):
            _run_order(order, group)
            number += 1
        store.set(f"left/{rank}", "")
    except (RuntimeError, StageError) as error:
        print(f"rank 0 is gone: {error}", flush=True)
        return 1
    return 0


def _find_coordinator(note: Path, start: str) -> dict[str, Any]:
    while True:
        with suppress(OSError, ValueError):
            place = json.loads(note.read_text(encoding="utf-8"))
            if place["start"] == start:
                return place
        time.sleep(_LOOK_S)


def _wait(store: Any, key: str) -> bytes:
    """Return what rank 0 says, however long that takes; raises RuntimeError if it is gone."""
    while not store.check([key]):
        time.sleep(_LOOK_S)
    return store.get(key)


def _order(module: str, identity: Mapping[str, Any], context: Context) -> dict[str, Any]:
    step, values = context.resume()
    return {
        "module": module, "identity": dict(identity), "runtime": dict(context.runtime), "resumed": [step, values],
        "folder": str(context.folder), "work": str(context.work), "outputs": str(context.outputs),
        "inputs": {role: str(found.folder) for role, found in context.inputs.items()},
        "previous": str(context.previous.folder) if context.previous else None,
    }  # fmt: skip


def _run_order(order: Mapping[str, Any], group: Ranks) -> None:
    """Run a stage with the others; whatever goes wrong is printed here and told to rank 0."""
    try:
        step, values = order["resumed"]
        context = Context(
            Path(order["folder"]), Path(order["work"]), Path(order["outputs"]),
            {role: _input(folder) for role, folder in order["inputs"].items()}, order["runtime"],
            _input(order["previous"]) if order["previous"] else None, lambda what, done, total: None,
            lambda row: None, group=group, resumed=(step, values),
        )  # fmt: skip
        print(f"helps with {context.folder.parent.name} {context.folder.name}", flush=True)
        importlib.import_module(order["module"]).run(order["identity"], context)
        group.meet()
    except Interrupted as end:
        print(f"rank 0 says: {end}", flush=True)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split()) or repr(error)
        group.fail(reason if isinstance(error, PrunelabError) else f"{type(error).__name__}: {reason}")
    gc.collect()  # the model is not needed until the next order
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _input(folder: str) -> Input:
    return Input(read_record(Path(folder).parent), Path(folder))
