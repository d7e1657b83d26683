"""Several tasks per job on the real cluster: the masks of one process, and no half-dead jobs."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from prunelab.sparsity.mask import Elementwise, Structured
from prunelab.structures.state import State, open_state

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
# Two batches, one for each task: what one process adds up, and how products of other batch sizes round, moves choices
# that are closer than that (a few of a million weights, and twenty shots follow from them).
ROWS = [
    "method=surgeon,kobd",
    "++method.step=0.02",
    "sparsity.ratio=0.4",
    "runtime.batch_tokens=64",
]  # twenty shots
# more tokens than a layer has inputs: with fewer, SparseGPT's choice depends on the last bit
ENOUGH = ["calibration.n_samples=8", "calibration.seq_len=128", "runtime.batch_tokens=512"]
SINGLE = [*ENOUGH, "method=sparsegpt,wanda", "sparsity=unstructured", "sparsity.ratio=0.5"]
UNITS = [
    "method=flap,llm_pruner",
    "sparsity=units",
    "sparsity.ratio=0.2",
    "method.step=0.1",
    "runtime.batch_tokens=64",
]
TWO = ["hydra.launcher.tasks_per_node=2", "hydra.launcher.mem_gib=4"]


def states(store: Path) -> dict[str, State]:
    """Every pruned state in a store, by the folder's name."""
    files = store.glob("prune/*/outputs/state.safetensors")
    return {path.parent.parent.name: open_state(path).load() for path in files}


@pytest.fixture(scope="module")
def one(at: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, State], dict[str, dict]]:
    """States and metrics by folder that one process finds, in the local pool."""
    folder = tmp_path_factory.mktemp("one")
    site = at.Site(folder, at.Cluster(folder))
    for words in (ROWS, SINGLE, UNITS):
        done = site.run(*words, launcher=[])
        assert done.returncode == 0, done.stdout + done.stderr
    return states(site.store), metrics(site)


def metrics(site: Any) -> dict[str, dict]:
    return {
        record["key"]: record["metrics"] for kind in ("prune", "evaluate") for record in site.records(kind)
    }


@pytest.fixture
def same(site: Any, one: tuple[dict[str, State], dict[str, dict]]) -> Any:
    """``same(n)``: the store holds n pruned states, with one process' masks and, nearly, its metrics."""

    def check(trials: int) -> None:
        found = states(site.store)
        assert len(found) == trials
        for name, state in found.items():
            for layer, item in state.items.items():
                mine, other = item.mask, one[0][name].items[layer].mask
                if isinstance(mine, Elementwise):
                    assert isinstance(other, Elementwise)
                    assert torch.equal(mine.keep_weight, other.keep_weight), layer
                else:
                    assert isinstance(other, Structured)
                    assert torch.equal(mine.keep_rows, other.keep_rows), layer
                    assert torch.equal(mine.joined_columns(), other.joined_columns()), layer
        for key, values in metrics(site).items():
            assert values == pytest.approx(one[1][key], rel=1e-3)
        assert all(record["cost"]["ranks"] == 2 for record in site.records("prune"))

    return check


def helper(site: Any) -> int:
    """The process id of rank 1 of the one trial, from its log."""
    (log,) = site.study.glob("logs/surgeon*.rank1.log")
    return int(re.findall(r"rank 1 of 2, .* pid (\d+)", log.read_text())[-1])


@pytest.mark.parametrize(
    "words",
    [[*ROWS, *TWO], [*SINGLE, "hydra.launcher.nodes=2"], [*UNITS, *TWO]],
    ids=["tasks", "nodes", "units"],
)
def test_two_tasks_give_the_masks_of_one(site: Any, same: Any, words: list[str]) -> None:
    done = site.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    same(2)
    asked = {
        name.partition("-")[0]: note["starts"][-1]["ranks"] for name, note in site.notes().items() if note
    }
    assert asked.pop("calibrate", 1) == 1  # nothing to share
    assert set(asked.values()) == {2}


def test_a_killed_rank_fails_the_job_and_retry_succeeds(site: Any, at: Any, same: Any) -> None:
    driver = site.start(*ROWS, "method=surgeon", *TWO, "hydra.launcher.kill_requeues=0")
    site.at_shot(2)
    os.kill(helper(site), signal.SIGKILL)
    out = driver.communicate(timeout=60)[0]
    assert driver.returncode == 1, out
    status = site.cli("status", "s").stdout
    assert "rank 1 of 2 is gone" in status or "killed by SIGKILL" in status, status
    again = site.cli("retry", "s", "--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    same(1)
    assert site.records("prune")[0]["cost"]["shots"] < 19


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_started_again(site: Any, at: Any, same: Any, rank: int) -> None:
    driver = site.start(*ROWS, "method=surgeon", *TWO)
    site.at_shot(2)
    os.kill(helper(site) if rank else site.running()[1]["starts"][-1]["pid"], signal.SIGKILL)
    out = driver.communicate(timeout=200)[0]
    assert driver.returncode == 0, out
    same(1)
    assert [len(note["starts"]) for note in site.notes().values()] == [2]


def test_preempted_ranks_leave_together(site: Any, at: Any, same: Any) -> None:
    driver = site.start(*ROWS, "method=surgeon", *TWO)
    site.at_shot(2)
    site.cluster.call(
        "sbatch", "-p", "high", "-N2", "--exclusive", "-t2", "-o", "/dev/null", "--wrap", "sleep 3"
    )
    out = driver.communicate(timeout=250)[0]
    assert driver.returncode == 0, out
    same(1)
    assert [len(note["starts"]) for note in site.notes().values()] == [2]
    assert (
        "SIGUSR2"
        in next(path for path in site.study.glob("logs/surgeon*.log") if "rank" not in path.name).read_text()
    )
    assert "rank 0 says: ended after step" in next(site.study.glob("logs/surgeon*.rank1.log")).read_text()
