"""The state of torch that every stage runs under: threads, determinism, device."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, cast

import torch

from prunelab.distributed.group import ALONE, Group
from prunelab.errors import ConfigError
from prunelab.models.activation import FILES, Placement
from prunelab.store.context import Context


def prepare(runtime: Mapping[str, Any]) -> str:
    """Fix what could change bits between two runs on one machine; return the device's name.

    Deterministic kernels only, no TF32, so that the same seed gives the same bits. ``device=auto`` takes CUDA
    if there is one, else the CPU. Raises ConfigError for a device this machine lacks.
    """
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with suppress(RuntimeError):  # may be set once per process; the second stage finds it set
        torch.set_num_interop_threads(1)
    if runtime.get("threads"):
        torch.set_num_threads(int(runtime["threads"]))
    torch.manual_seed(0)
    return choose_device(runtime["device"])


def choose_device(name: str) -> str:
    """Return the device that ``name`` (auto, cpu, mps, cuda, cuda:N) means on this machine."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise ConfigError(
                "runtime.device", name, f"one of {torch.cuda.device_count()} CUDA devices, or cpu"
            )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("runtime.device", name, "cpu: this machine has no MPS")
    return name


def placement(context: Context, unlimited: Literal["device", "ram"] = "device") -> Placement:
    """Return where hidden states wait between blocks, by ``runtime.activation_*``; files of an attempt that was
    killed are deleted. ``unlimited``: where ``auto`` puts them without a limit.

    Each rank has a folder of its own, so that none deletes what another writes.
    """
    ranks = group(context)
    folder = context.work if ranks.rank == 0 else context.work / f"rank{ranks.rank}"
    for left in folder.glob(f"{FILES}*"):
        shutil.rmtree(left, ignore_errors=True)
    place, limit, dtype = (context.runtime[f"activation_{key}"] for key in ("place", "gib", "dtype"))
    if place == "auto" and limit is None:
        place = unlimited
    return Placement(place, limit, folder, None if dtype is None else getattr(torch, dtype))


def group(context: Context) -> Group:
    """Return the processes that run this stage together, as numerics know them."""
    return ALONE if context.group is None else cast(Group, context.group)


def batch_size(runtime: Mapping[str, Any], seq_len: int) -> int:
    """Return how many sequences make a batch of about ``runtime.batch_tokens`` tokens; at least one."""
    return max(1, int(runtime["batch_tokens"]) // seq_len)
