"""Hidden states of any number of sequences: on the model's device, in RAM, or in files when RAM would not do.

A Shelf hands out stores within a budget of bytes: with ``place="auto"`` the first ones go to RAM and what no
longer fits goes to disk. Files are .npy (never pickles); each access maps the file, copies its rows and unmaps
it again, so what is resident does not grow with the number of sequences. Stores keep the model's dtype, so a
walk gives the same bits wherever they are, unless ``dtype`` asks for a smaller one.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prunelab.errors import ConfigError, StoreError
from prunelab.files import make_folder, share

GIB = 2**30
FILES = "activations-"  # what the folders of a shelf's files begin with
# numpy has no bfloat16: files hold the bits
_BITS = {torch.float32: np.int32, torch.bfloat16: np.int16, torch.float16: np.int16}
_VIEWS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True)
class Placement:
    """Where hidden states wait. ``budget_gib``: for stores on the device or in RAM together, None = no limit
    (only ``auto`` turns to disk beyond it). ``folder``: for files, None = the system's temporary one.
    ``dtype``: None = the model's.
    """

    place: Literal["auto", "device", "ram", "disk"] = "auto"
    budget_gib: float | None = None
    folder: Path | None = None
    dtype: torch.dtype | None = None


class Activations:
    """Hidden states (n, seq_len, d) of one stream; ``read`` and ``write`` speak the model's dtype and device."""

    def __init__(self, held: Tensor | Path, shape: tuple[int, int, int], stored: torch.dtype) -> None:
        self.held, self.shape, self.stored = held, shape, stored

    @property
    def on_disk(self) -> bool:
        """Whether a file holds the values."""
        return isinstance(self.held, Path)

    def read(self, rows: slice | Tensor, like: Tensor) -> Tensor:
        """Return sequences ``rows`` (a slice, or indices (b,) int64), (b, seq_len, d), as ``like`` is.

        A slice of values held where ``like`` is shares their memory: it changes with the next ``write``.
        """
        if isinstance(self.held, Tensor):
            found = self.held[rows if isinstance(rows, slice) else rows.to(self.held.device)]
        else:
            array = np.load(self.held, mmap_mode="r", allow_pickle=False)
            chosen = array[rows if isinstance(rows, slice) else rows.numpy()]
            # torch's own memory, aligned as any other tensor's: products round the same wherever states wait
            bits = torch.empty(chosen.shape, dtype=_VIEWS[self.stored])
            np.copyto(bits.numpy(), chosen)
            found = bits.view(self.stored)
        return found.to(like.device, like.dtype)

    @torch.no_grad()
    def write(self, rows: slice, value: Tensor) -> None:
        """Put ``value`` (b, seq_len, d) in place of sequences ``rows``."""
        if isinstance(self.held, Tensor):
            self.held[rows] = value.to(self.held.device, self.stored)
            return
        try:
            array = np.load(self.held, mmap_mode="r+", allow_pickle=False)
            bits = value.to("cpu", self.stored).contiguous()
            array[rows] = bits.view(_VIEWS[self.stored]).numpy()
        except OSError as error:
            raise StoreError(
                f"cannot write activations to {self.held}: {error}. Free space there."
            ) from error


def in_memory(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Activations:
    """Return a store that a tensor on ``device`` holds; its values are undefined until written."""
    return Activations(torch.empty(shape, dtype=dtype, device=device), shape, dtype)


class Shelf:
    """Hands out stores within a budget; made by :func:`open_shelf`."""

    def __init__(self, placement: Placement, dtype: torch.dtype, device: torch.device, folder: Path) -> None:
        self.placement, self.device, self.folder = placement, device, folder
        self.dtype = placement.dtype or dtype
        self.used = 0  # bytes on the device or in RAM
        self.made = 0

    def build(self, n: int, seq_len: int, width: int) -> Activations:
        """Return a store of n sequences; its values are undefined until written."""
        size = n * seq_len * width * self.dtype.itemsize
        budget = self.placement.budget_gib
        fits = budget is None or self.used + size <= budget * GIB
        place = self.placement.place
        if place == "disk" or (place == "auto" and not fits):
            return self._file((n, seq_len, width), size)
        if not fits:
            raise ConfigError(
                "runtime.activation_gib", budget, f"at least {(self.used + size) / GIB:.2f} with place={place}",
                "Or runtime.activation_place=auto, which goes on in files.",
            )  # fmt: skip
        self.used += size
        device = self.device if place == "device" else torch.device("cpu")
        return in_memory((n, seq_len, width), self.dtype, device)

    def discard(self, store: Activations | None) -> None:
        """Give a store's memory or file back; it must not be used afterwards."""
        if store is None:
            return
        if isinstance(store.held, Path):
            store.held.unlink()
        else:
            self.used -= store.held.nbytes
            store.held = store.held.new_empty(0)

    def _file(self, shape: tuple[int, int, int], size: int) -> Activations:
        path = self.folder / f"{self.made}.npy"
        self.made += 1
        free = math.inf
        with contextlib.suppress(OSError, AttributeError):
            space = os.statvfs(self.folder)
            free = space.f_bavail * space.f_frsize
        if size > free:
            raise StoreError(
                f"activations need {size / GIB:.2f} GiB in {self.folder}, free are {free / GIB:.2f}. "
                "Free space there, or take fewer samples or runtime.activation_dtype=bfloat16."
            )
        array = np.lib.format.open_memmap(path, mode="w+", dtype=_BITS[self.dtype], shape=shape)
        del array
        _reserve(path)
        return Activations(path, shape, self.dtype)


def _reserve(path: Path) -> None:
    """Claim the disk space of a sparse file: where it ran out later, a write to the mapping would kill the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without it
            return
        raise StoreError(f"cannot write activations to {path}: {error}. Free space there.") from error


@contextlib.contextmanager
def open_shelf(placement: Placement, dtype: torch.dtype, device: torch.device) -> Iterator[Shelf]:
    """Open a shelf for a model of ``dtype`` on ``device``; its files are deleted when the block is left.

    Raises ConfigError for an unknown place or a dtype that cannot be stored.
    """
    if placement.place not in ("auto", "device", "ram", "disk"):
        raise ConfigError("runtime.activation_place", placement.place, "auto | device | ram | disk")
    if (placement.dtype or dtype) not in _BITS and placement.place in ("auto", "disk"):
        raise ConfigError(
            "runtime.activation_dtype", str(placement.dtype or dtype), "float32 | bfloat16 | float16"
        )
    if placement.folder is not None:
        make_folder(placement.folder)
    with tempfile.TemporaryDirectory(prefix=FILES, dir=placement.folder) as folder:
        if placement.folder is not None:
            share(Path(folder))  # whoever goes on after a kill deletes what was left
        yield Shelf(placement, dtype, device, Path(folder))
