"""What a job needs: what the user says, else a guess from the model's size, the stages and their shots."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from prunelab.launch.slurm.settings import Settings
from prunelab.plan.graph import Job, shots
from prunelab.plan.kind import cost_of, shares_sums
from prunelab.plan.study import Plan

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SMALL = 0.3  # GiB of weights; below this one core and no GPU are enough
_BASE_GIB = 2.0  # Python, torch, tokenizer, text


@dataclass(frozen=True)
class Need:
    """What one job asks for: GPUs, memory and ``tasks`` per node, CPUs per task; ``threads`` is torch's part of these."""

    time_min: int
    mem_gib: float
    gpus: int
    cpus: int
    nodes: int
    threads: int
    tasks: int = 1

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU{'s' if self.gpus != 1 else ''}, " if self.gpus else ""
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        tasks = f"{self.tasks} tasks: " if self.tasks > 1 else ""
        cpus = f"{f'{self.tasks} x ' if self.tasks > 1 else ''}{self.cpus} CPU{'s' if self.cpus != 1 else ''}"
        return f"{nodes}{tasks}{gpus}{cpus}, {self.mem_gib:g} GiB, {self.time_min} min"


def need(plan: Plan, job: Job, settings: Settings) -> Need:
    """Return what a job asks for; the settings win over the estimate.

    Unless told, a task per GPU. A job that has no statistics to share gets one task on one node in any case.
    """
    stages = [plan.stages[key] for key in job.stages]
    weights = max(
        (weights_gib(stage.runtime["model"]) for stage in stages if "model" in stage.runtime), default=0.0
    )
    runtime = plan.trials[0].config.runtime
    small = weights < _SMALL
    costs = [cost_of(stage.kind, stage.identity) for stage in stages]
    repeats = [shots(stage, plan.stages) for stage in stages]
    memory = _BASE_GIB + max((cost.memory_gib * weights for cost in costs), default=0.0)
    minutes = 15.0 + sum(
        cost.minutes * weights * (1 if n is None else n) for cost, n in zip(costs, repeats, strict=True)
    )
    shares = any(shares_sums(stage.kind, stage.inputs, stage.identity) for stage in stages)
    tasks = (settings.tasks_per_node or settings.gpus or 1) if shares else 1
    gpus = (
        settings.gpus
        if settings.gpus is not None
        else tasks * (not small and runtime.device in ("auto", "cuda"))
    )
    cpus = settings.cpus or runtime.threads or (1 if small else 8)
    return Need(
        settings.time_min or ceil(minutes / 15) * 15,
        settings.mem_gib or float(ceil(tasks * memory)),
        gpus, cpus, settings.nodes if shares else 1, runtime.threads or cpus, tasks,
    )  # fmt: skip


def weights_gib(model: Mapping[str, Any]) -> float:
    """Return the size of a model's weights in memory: from its files if they are here, else from its name (``7b``)."""
    return _weights(str(model["source"]), str(model["id"]), str(model["dtype"]))


@lru_cache(maxsize=256)
def _weights(source: str, name: str, dtype: str) -> float:
    if source in ("embedded", "random"):
        return 0.01
    if source == "local":
        return _files_gib(Path(name).expanduser())
    cache = os.environ.get("HF_HUB_CACHE") or f"{os.environ.get('HF_HOME', '~/.cache/huggingface')}/hub"
    snapshots = Path(cache).expanduser() / f"models--{name.replace('/', '--')}" / "snapshots"
    found = max((_files_gib(folder) for folder in snapshots.glob("*")), default=0.0)
    sizes = re.findall(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", name.lower())
    if not found and sizes:
        count, unit = sizes[-1]
        found = float(count) * (1e9 if unit == "b" else 1e6) * _BYTES.get(dtype, 4) / 2**30
    return found or 14.0  # nothing is known: as much as 7 billion parameters in half precision


def _files_gib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30
