"""The cluster gives what the local pool gives, quickly, with the GPUs asked for, and without anybody's secrets."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from prunelab.report.table import results_csv

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
SECRETS = {
    "WANDB_API_KEY": "c0ffee00" * 5,
    "MY_SERVICE_TOKEN": "hunter2-token-value",
    "DATABASE_URL": "hunter3-in-a-url",
}


def numbers(folder: Path) -> bytes:
    """The result table without what a clock or a place decides."""
    lines = [line.split(",") for line in results_csv(folder).splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if not name.startswith("cost/")]
    return "\n".join(",".join(line[i] for i in kept) for line in lines).encode()


@pytest.mark.parametrize("cluster", ["db", "bare"], indirect=True)
def test_same_table_as_the_local_pool(site: Any, base: Path) -> None:
    for kind in ("calibrate", "dense"):
        shutil.rmtree(site.store / kind)
    done = site.run("method=magnitude,random", "sparsity.ratio=0.1,0.2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert numbers(site.study) == numbers(base / "home" / "studies" / "s")
    again = site.run("method=magnitude,random", "sparsity.ratio=0.1,0.2")
    assert "ran no stage" in again.stdout


def test_three_hundred_trials(site: Any, tmp_path: Path) -> None:
    ratios = ",".join(f"{n / 1000:g}" for n in range(1, 151))
    started = time.monotonic()
    done = site.run(
        "method=magnitude,random", f"sparsity.ratio={ratios}", "hydra.launcher.wait=false",
        "+hydra.launcher.extra.begin=now+1hour",
    )  # fmt: skip
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted 300 jobs" in done.stdout
    assert site.cluster.call("squeue", "-h", "-r", "-o", "%i").count("\n") == 299
    assert seconds < 15
    # a squeue that counts how often it is called
    shim = tmp_path / "bin" / "squeue"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\necho x >> {tmp_path}/calls\nexec {shutil.which("squeue")} "$@"\n')
    shim.chmod(0o755)
    started = time.monotonic()
    status = site.cli("status", "s", PATH=f"{shim.parent}:{os.environ['PATH']}")
    assert time.monotonic() - started < 5
    assert status.returncode == 0, status.stdout + status.stderr
    assert "300 pending" in status.stdout
    assert (tmp_path / "calls").read_text() == "x\n"
    assert "cancelled 300 jobs" in site.cli("cancel", "s").stdout


@pytest.mark.parametrize("gpus", [1, 2])
def test_gpus_asked_for_are_gpus_seen(site: Any, gpus: int) -> None:
    done = site.run("method=magnitude,random", "sparsity.ratio=0.1", f"hydra.launcher.gpus={gpus}")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = [note["starts"][-1]["gpus"] for note in site.notes().values()]
    assert [len(names.split(",")) for names in seen] == [gpus] * 2
    assert set(",".join(seen).split(",")) <= {"0", "1"}


def test_no_secret_is_anywhere(site: Any, at: Any) -> None:
    site.flag("pause", 1)
    driver = site.start(*at.SLOW, **SECRETS)
    site.at_shot(1)
    seen = Path(f"/proc/{site.running()[1]['starts'][-1]['pid']}/environ").read_bytes()
    out = driver.communicate(timeout=200)[0]
    assert driver.returncode == 0, out
    places = [site.folder / "home", site.cluster.folder]
    files = [
        path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    assert len(files) > 30
    for value in SECRETS.values():
        assert value.encode() not in seen
        assert not [path for path in files if value.encode() in path.read_bytes()]
    refused = site.run(*at.SLOW, "hydra.launcher.environment=[PATH,HOME,WANDB_API_KEY]", **SECRETS)
    assert refused.returncode == 1
    assert "~/.netrc" in refused.stdout + refused.stderr
