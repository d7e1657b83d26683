"""Whatever the cluster does: in the end one correct result per trial, and no finished stage was made twice."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]


@pytest.fixture
def correct(site: Any, expected: dict) -> Any:
    """``correct(n)``: there are n trials' results, as the local pool found them, and nothing quarantined."""

    def check(trials: int) -> None:
        found = {r["key"]: r["metrics"] for kind in ("prune", "evaluate") for r in site.records(kind)}
        assert len(site.records("evaluate")) == trials
        assert found == {key: expected[key] for key in found}
        assert not (site.store / "quarantine").exists()

    return check


def shots(site: Any) -> int:
    """How many of the eight shots the start that finished the stage made itself."""
    (record,) = site.records("prune")
    assert len(record["tables"]["shots"]) == 8
    return record["cost"]["shots"]


def test_driver_killed_after_submission(site: Any, at: Any, correct: Any) -> None:
    driver = site.start("method=magnitude,random", "sparsity.ratio=0.1,0.2")
    at.until(lambda: len(site.ids()) == 1, 60)
    at.kill(driver)
    # the id is lost as well: as if the kill had come between sbatch and its note
    (note,) = site.study.glob("slurm/*/id")
    job = note.read_text()
    note.unlink()
    again = site.run("method=magnitude,random", "sparsity.ratio=0.1,0.2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "submitted 0 jobs, 4 were there already" in again.stdout
    assert note.read_text() == job
    assert [len(note["starts"]) for note in site.notes().values()] == [1] * 4
    correct(4)


def test_driver_killed_between_submissions(site: Any, at: Any, correct: Any) -> None:
    # an empty store: four arrays; killed as soon as the first intent is on disk
    for kind in ("calibrate", "dense"):
        subprocess.run(["rm", "-r", site.store / kind], check=True)
    driver = site.start("method=magnitude", "sparsity.ratio=0.1,0.2")
    at.until(lambda: any(site.study.glob("slurm/*/jobs.json")), 60, tick=0.002)
    at.kill(driver)
    before = set(site.ids())
    again = site.run("method=magnitude", "sparsity.ratio=0.1,0.2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(before) < 4
    assert [len(note["starts"]) for note in site.notes().values()] == [1] * len(site.notes())
    correct(2)


def test_scancel_of_a_shared_job(site: Any, at: Any, correct: Any) -> None:
    site.flag("pause", 60)  # it is cancelled in its first shot, however long the command takes to start
    # 0.1 is a prefix of 0.4, so it is a job of its own; one trial needs it, the other can do without
    driver = site.start("method=slow", "sparsity.ratio=0.1,0.4")
    at.until(lambda: any(n.startswith("prune-slow-0.1") for n, note in site.notes().items() if note), 60)
    done = site.cli("cancel", "s", "prune-slow-0.1-embedded_llama-s0")
    assert "cancelled 1 jobs" in done.stdout, done.stdout + done.stderr
    site.flag("pause", 0)
    out = driver.communicate(timeout=200)[0]
    assert driver.returncode == 1, out
    status = site.cli("status", "s").stdout
    assert "cancelled by scancel" in status
    assert "dependency: prune-slow-0.1-embedded_llama-s0 failed" in status
    assert len(site.records("evaluate")) == 1
    before = site.stamps()
    again = site.run("method=slow", "sparsity.ratio=0.1,0.4")
    assert again.returncode == 0, again.stdout
    assert "submitted 1 jobs" in again.stdout, again.stdout  # with 0.4 done, the prefix is one trial's own
    assert before.items() <= site.stamps().items()
    assert len(site.records("evaluate")) == 2


def test_requeue(site: Any, at: Any, correct: Any) -> None:
    site.flag("pause", 0.5)
    driver = site.start(*at.SLOW)
    site.at_shot(2)
    site.cluster.call("scontrol", "requeue", site.running()[1]["starts"][-1]["job"])
    out = driver.communicate(timeout=200)[0]
    assert driver.returncode == 0, out
    assert [len(note["starts"]) for note in site.notes().values()] == [2]
    assert shots(site) < 7
    correct(1)


def test_preemption(site: Any, at: Any, correct: Any) -> None:
    site.flag("pause", 0.5)
    driver = site.start(*at.SLOW)
    site.at_shot(2)
    site.cluster.call(
        "sbatch", "-p", "high", "-N2", "--exclusive", "-t2", "-o", "/dev/null", "--wrap", "sleep 3"
    )
    out = driver.communicate(timeout=250)[0]
    assert driver.returncode == 0, out
    (note,) = site.notes().values()
    assert len(note["starts"]) == 2
    assert shots(site) < 7
    log = next(site.study.glob("logs/slow*.log")).read_text()
    assert "SIGUSR2" in log
    correct(1)


def test_time_limit(site: Any, at: Any, correct: Any) -> None:
    site.flag("pause", 9)
    driver = site.start(*at.SLOW, "hydra.launcher.time_min=1", "hydra.launcher.signal_s=20")
    at.until(lambda: any(len(n.get("starts", ())) > 1 for n in site.notes().values()), 150)
    site.flag("pause", 0)
    out = driver.communicate(timeout=200)[0]
    assert driver.returncode == 0, out
    assert shots(site) < 8
    correct(1)


def test_time_limit_too_short_for_a_shot(site: Any, at: Any, correct: Any) -> None:
    site.flag("pause", 300)
    done = site.run(*at.SLOW, "hydra.launcher.time_min=1", "hydra.launcher.signal_s=20")
    assert done.returncode == 1
    assert "time limit of 1 min" in done.stdout
    assert "retry --time" in done.stdout
    site.flag("pause", 0)
    again = site.cli("retry", "s", "--time", "0:10:00", "--wait")
    assert again.returncode == 0, again.stdout
    correct(1)


def test_slurmd_killed_and_the_orphan_beside_the_copy(site: Any, at: Any, correct: Any) -> None:
    site.flag("pause", 10)  # longer than the controller needs to give the node up
    driver = site.start(*at.SLOW)
    site.at_shot(1)
    name, note = site.running()
    node, orphan = note["starts"][-1]["node"], note["starts"][-1]["pid"]
    os.kill(int((site.cluster.folder / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    try:
        at.until(lambda: len(site.notes()[name]["starts"]) == 2, 120)
        os.kill(orphan, 0)  # it is still there, beside the copy
        site.flag("pause", 0)
        out = driver.communicate(timeout=100)[0]
    finally:
        site.cluster.control("node", node)
    assert driver.returncode == 0, out
    (note,) = site.notes().values()
    assert len({start["node"] for start in note["starts"]}) == 2
    (record,) = site.records("prune")
    assert len(record["tables"]["shots"]) == 8
    assert len((site.store / "prune").glob("*/metrics.jsonl").__next__().read_text().splitlines()) == 8
    correct(1)


def test_worker_killed(site: Any, at: Any, correct: Any) -> None:
    site.flag("pause", 0.5)
    driver = site.start(*at.SLOW)
    site.at_shot(2)
    os.kill(site.running()[1]["starts"][-1]["pid"], signal.SIGKILL)
    out = driver.communicate(timeout=200)[0]
    assert driver.returncode == 0, out
    assert [len(note["starts"]) for note in site.notes().values()] == [2]
    assert shots(site) < 7
    correct(1)


def test_out_of_memory(site: Any, at: Any, correct: Any) -> None:
    site.flag("eat", 2500)
    done = site.run(*at.SLOW, "method=slow,magnitude", "hydra.launcher.kill_requeues=0")
    assert done.returncode == 1
    assert "out of memory: it had 1.5 GiB; prunelab retry --mem" in done.stdout
    assert len(site.records("evaluate")) == 1  # the other trial
    before = site.stamps()
    again = site.cli("retry", "s", "--mem", "4.5G", "--wait")
    assert again.returncode == 0, again.stdout
    assert before.items() <= site.stamps().items()
    assert len(site.records("evaluate")) == 2


def test_exception(site: Any, at: Any, correct: Any) -> None:
    site.flag("fail")
    done = site.run(*at.SLOW)
    assert done.returncode == 1
    assert "RuntimeError: told to fail" in done.stdout
    status = site.cli("status", "s")
    assert status.returncode == 1
    assert "RuntimeError: told to fail" in status.stdout
    assert "told to fail" in site.cli("logs", "s", "slow-0.4-austen-s0").stdout
    (site.flags / "fail").unlink()
    left = site.cli("retry", "s")
    assert left.returncode == 0, left.stdout + left.stderr
    assert "submitted 1 jobs" in left.stdout
    follow = site.cli("attach", "s")
    assert follow.returncode == 0, follow.stdout + follow.stderr
    assert "1 done" in site.cli("status", "s").stdout
    correct(1)


def test_two_drivers_at_once(site: Any, at: Any, correct: Any) -> None:
    words = ["method=magnitude,random", "sparsity.ratio=0.1,0.2"]
    drivers = [site.start(*words) for _ in range(2)]
    outs = [driver.communicate(timeout=250)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outs
    assert sorted(line for out in outs for line in out.splitlines() if line.startswith("submitted")) == [
        "submitted 0 jobs, 4 were there already", "submitted 4 jobs",
    ]  # fmt: skip
    assert [len(note["starts"]) for note in site.notes().values()] == [1] * 4
    correct(4)


@pytest.mark.parametrize("cluster", ["bare"], indirect=True)
def test_reused_ids_after_a_wiped_controller(site: Any, at: Any, correct: Any) -> None:
    site.flag("pause", 2)
    assert site.run(*at.SLOW, "hydra.launcher.wait=false").returncode == 0
    (job,) = site.ids()
    site.at_shot(1)
    site.cluster.control("wipe")
    site.cluster.control("start", FIRST_JOB_ID=job)
    site.cluster.call(
        "sbatch", "--array=0-0", "-J", "somebody-else", "-o", "/dev/null", "--wrap", "sleep 100"
    )
    assert f"{job}_0" in site.cluster.call("squeue", "-h", "-r", "-o", "%i")
    assert "1 failed" in site.cli("status", "s").stdout
    site.flag("pause", 0)
    again = site.run(*at.SLOW)
    assert "submitted 1 jobs" in again.stdout
    assert again.returncode == 0, again.stdout
    assert shots(site) < 8
    correct(1)


def test_refused_by_sbatch(site: Any, at: Any) -> None:
    done = site.run(*at.SLOW, "hydra.launcher.partition=gpu_long")
    assert done.returncode == 1
    assert "invalid partition" in done.stderr.lower(), done.stderr
    assert "hydra.launcher.partition" in done.stderr
    many = site.run(*at.SLOW, "hydra.launcher.gpus=3")
    assert many.returncode == 1
    assert "3 GPUs" in many.stderr
    assert "node configuration is not available" in many.stderr
    assert "Traceback" not in done.stderr + many.stderr
    assert not site.cluster.call("squeue", "-h", "-o", "%i")
    assert not [note for note in site.notes().values() if note]
