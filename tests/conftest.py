"""Fixtures that every part shares: small random decoders of all families."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from by_conf import composer as the_composer

from prunelab.config.compose import Composer
from prunelab.family import load_families
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder

ROOT = Path(__file__).resolve().parents[1]
FAMILY_NAMES = [family.name for family in load_families()]
# Tests that are marked `typical_families` go over these alone: every way that blocks are built and called is among them
# (separate and fused maps in all orders, gated and plain MLPs, grouped heads, biases, tied and narrow embeddings, weights
# stored as (in, out), two kinds of attention in one model, ALiBi without sdpa, blocks side by side, tuples and tensors).
TYPICAL_FAMILIES = ["bloom", "falcon", "gemma3", "gpt2", "opt"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``family_name``, and what builds on it, every family in turn, or the typical ones."""
    if "family_name" in metafunc.fixturenames:
        few = metafunc.definition.get_closest_marker("typical_families") is not None
        metafunc.parametrize("family_name", TYPICAL_FAMILIES if few else FAMILY_NAMES, indirect=True)


def _in_memory() -> str | None:
    """Return a place in memory that programs can be started from and that has room, or None where there is none.

    A file written, flushed and removed on a disk costs up to 10 ms of waiting, and tests make tens of thousands.
    """
    place = Path("/dev/shm")
    if not place.is_dir() or not os.access(place, os.W_OK):
        return None
    facts = os.statvfs(place)
    room = facts.f_bavail * facts.f_frsize
    return str(place) if room >= 4 * 2**30 and not facts.f_flag & os.ST_NOEXEC else None


def pytest_configure() -> None:
    """Have temporary folders in memory where that can be, unless somebody says where they shall be."""
    place = _in_memory()
    if place and not {"PYTEST_DEBUG_TEMPROOT", "TMPDIR"} & set(os.environ):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = place


def pytest_collection_finish() -> None:
    """Put what importing left, over a million objects, out of the garbage collector's sight: each full pass went over it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of tests marked ``methods_by_families``, the product of both, leave by default a part and make the rest slow.

    Every method meets at least three families and every family at least two methods; ``make slow`` runs the others.
    """
    tables: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        if item.get_closest_marker("methods_by_families") is not None:
            values = item.callspec.params  # type: ignore[attr-defined]
            case = " ".join(str(value) for name, value in sorted(values.items()) if name != "family_name")
            tables.setdefault(item.nodeid.partition("[")[0], {}).setdefault(case, []).append(item)
    for cases in tables.values():
        for number, row in enumerate(cases.values()):
            row.sort(key=lambda item: item.callspec.params["family_name"])  # type: ignore[attr-defined]
            width = max(3, -(-2 * len(row) // len(cases)))
            stay = {(number * width + step) % len(row) for step in range(width)}
            for index, item in enumerate(row):
                if index not in stay:
                    item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # small matrices: threads only add noise, and one thread keeps sums in one order
    torch.set_num_threads(1)


@pytest.fixture
def composer() -> Composer:
    """The composer over the project's own conf folder that all tests share."""
    return the_composer()


@pytest.fixture
def family_name(request: pytest.FixtureRequest) -> str:
    """The name of each model family in turn."""
    return request.param


@pytest.fixture
def decoder(family_name: str) -> Decoder:
    """A fresh random two-layer decoder of each family in turn."""
    return random_decoder(family_name)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Random tokens (5, 20) within every random decoder's vocabulary of 64; longer than their sliding
    windows of 8.
    """
    return torch.randint(3, 64, (5, 20), generator=torch.Generator().manual_seed(7))


class People:
    """Users A and B, who share nothing but group ``lab``, and a folder ``place`` that both can reach."""

    lab, ids = 58000, {"A": 58001, "B": 58002}

    def __init__(self, place: Path) -> None:
        self.place = place
        for user, number in self.ids.items():
            self.folder(user, 0o755, number, number)

    def folder(self, name: str, mode: int, user: int = 0, group: int | None = None) -> Path:
        """Make a folder of root and the lab, or of whom it is said."""
        folder = self.place / name
        folder.mkdir()
        os.chown(folder, user, self.lab if group is None else group)
        folder.chmod(mode)
        return folder

    def python(
        self, user: str, *words: str, umask: int = 0o022, member: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python as a user, in that user's folder. A member's own group is not the lab: that comes second."""
        number = self.ids[user]
        groups = ["--groups", str(self.lab)] if member else ["--clear-groups"]
        identity = ["setpriv", f"--reuid={number}", f"--regid={number}", *groups]
        command = f'umask {umask:o}; {_opened(Path(sys.base_prefix), ROOT)} cd "$HOME"; exec "$@"'
        home = self.place / user
        variables = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                     "USER": user, "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", command, "sh", *identity, sys.executable, *words],
            env=variables | env, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip


def _opened(*needed: Path) -> str:
    """Return commands that let everybody reach ``needed`` in the mounts of one process, be they below a closed home."""
    words = []
    for path in needed:
        closed = next((p for p in reversed(path.parents) if not p.stat().st_mode & 0o001), None)
        if closed is not None:
            words.append(
                f'kept=$(mktemp -d); mount --bind "{path}" "$kept"; mount -t tmpfs -o mode=755 tmpfs "{closed}"; '
                f'mkdir -p -m 755 "{path}"; mount --bind "$kept" "{path}"; umount "$kept"; rmdir "$kept";'
            )
    return "(umask 022;" + " ".join(words) + ");" if words else ""


@pytest.fixture
def people() -> Iterator[People]:
    """Two real users; skipped where the test may not be somebody else."""
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or not (shutil.which("setpriv") and shutil.which("unshare"))
    ):
        pytest.skip("root on Linux may be other users; this is not root")
    place = Path(tempfile.mkdtemp(prefix="people-"))  # pytest's own folders are closed to others
    place.chmod(0o755)
    try:
        lab = People(place)
        tried = lab.python("A", "-c", "import prunelab.cli")
        if tried.returncode:
            pytest.skip(f"another user cannot run prunelab here: {tried.stderr[-300:]}")
        yield lab
    finally:
        shutil.rmtree(place)
