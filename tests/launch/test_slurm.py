"""The SLURM launcher against fake commands: what is submitted, what is understood, in milliseconds."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from by_conf import composer

from prunelab.config.trial import typed, typed_corpora
from prunelab.errors import ConfigError, LaunchError
from prunelab.launch.command.study import checked_trials, plan_study
from prunelab.launch.run.base import Event, Order, Resources
from prunelab.launch.run.failure import failure_path
from prunelab.launch.slurm import scheduler
from prunelab.launch.slurm.environment import is_secret, job_environment
from prunelab.launch.slurm.estimate import need, weights_gib
from prunelab.launch.slurm.files import Files
from prunelab.launch.slurm.job_list import read_jobs
from prunelab.launch.slurm.launcher import Slurm
from prunelab.launch.slurm.scheduler import parse_accounting
from prunelab.launch.slurm.settings import Settings
from prunelab.launch.slurm.task import own_gpu
from prunelab.plan.graph import jobs
from prunelab.plan.study import Plan, build_plan, save_plan
from prunelab.store.artefact import Superseded, begin, commit
from prunelab.store.context import Context, Interrupted
from prunelab.store.record import Record

SCRIPTS = {
    "sbatch": """
n=$(cat "$FAKE/count" 2>/dev/null || echo 100); n=$((n + 1)); echo $n > "$FAKE/count"
if [ -f "$FAKE/refuse" ] && [ $n -ge "$(cat "$FAKE/refuse")" ]; then
  echo "sbatch: error: Batch job submission failed: Requested node configuration is not available" >&2; exit 1; fi
cp "$1" "$FAKE/script-$n"; env > "$FAKE/env-$n"; echo "Submitted batch job $n" """,
    "squeue": 'echo x >> "$FAKE/squeue-calls"; cat "$FAKE/squeue.out" 2>/dev/null; exit 0',
    "sacct": 'echo "$@" >> "$FAKE/sacct-calls"; cat "$FAKE/sacct.out" 2>/dev/null || exit 1',
    "scancel": 'echo "$@" >> "$FAKE/cancelled"',
    "srun": "exit 0",
}


@dataclass
class Fake:
    """The folder of fake commands and what they wrote."""

    folder: Path

    def scripts(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("script-*"))]

    def squeue(self, *lines: str) -> None:
        (self.folder / "squeue.out").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, body in SCRIPTS.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\nFAKE={folder}\n{body.strip()}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Fake(folder)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return _plan(tmp_path, ["magnitude", "random"], [0.1, 0.2])


def _jobs(root: Path, methods: list[str], ratios: list[float], *more: str) -> list[list[str]]:
    fixed = [
        f"paths.root={root}",
        "study=s",
        "evaluation.corpora=[austen]",
        "evaluation.held_out=[kjv]",
        *more,
    ]
    return [[f"method={m}", f"sparsity.ratio={r}", *fixed] for m in methods for r in ratios]


def _plan(root: Path, methods: list[str], ratios: list[float], *more: str) -> Plan:
    return plan_study(composer(), _jobs(root, methods, ratios, *more), [])


def _plan_of_a_thousand(root: Path) -> Plan:
    """A plan of two methods at 500 ratios; each method is composed and checked at one."""
    configs, corpora, problems = checked_trials(composer(), _jobs(root, ["magnitude", "random"], [0.1]))
    assert not problems
    rows = [
        (typed({**config, "sparsity": {**config["sparsity"], "ratio": number / 1000}}), typed_corpora(specs))
        for config, specs in zip(configs, corpora, strict=True)
        for number in range(1, 501)
    ]
    trials, texts = [trial for trial, _ in rows], [own for _, own in rows]
    return build_plan(trials, texts, [[]] * len(rows), argv=[], created="")


def run(plan: Plan, settings: Settings, *, wait: bool = False) -> list[Event]:
    events: list[Event] = []
    order = Order(plan, save_plan(plan), jobs(plan, set()), Resources(1, 1))
    Slurm(settings, wait=wait).run(order, events.append)
    return events


SETTINGS = Settings(environment=("PATH", "HOME"), poll_s=0.1)


def test_arrays_dependencies_and_what_crosses(
    plan: Plan, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-value")
    settings = Settings.read(
        {"partition": "gpu", "account": "lab", "qos": "long", "constraint": "a100", "time_min": 90, "mem_gib": 1.5, "gpus": 1,
         "cpus": 3, "extra": {"mail-type": "FAIL"}, "setup": ["module load cuda"], "array_parallelism": 2,
         "environment": ["PATH", "HOME"]}
    )  # fmt: skip
    (event,) = run(plan, settings)
    assert event.values == {"jobs": 8, "there": 0}
    first, second, trials = fake.scripts()
    assert "#SBATCH --array=0-3%2" in trials
    assert "#SBATCH --dependency=afterok:" in trials
    assert trials.count("101_") == 3
    assert trials.count("102_0") == 1
    assert "--dependency" not in first
    assert "--kill-on-invalid-dep=yes" in second
    for line in ("partition=gpu", "account=lab", "qos=long", "constraint=a100", "time=90", "mem=1536M", "gpus-per-node=1",
                 "cpus-per-task=3", "mail-type=FAIL", "signal=USR2@90", "requeue"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in trials
    assert "module load cuda" in trials
    assert "--cpus-per-task=3 --kill-on-bad-exit=1" in trials
    assert "ntasks-per-node=1" in trials
    env = (fake.folder / "env-103").read_text()
    assert "secret-value" not in env
    assert "OMP_NUM_THREADS=3" in env
    assert os.environ["WANDB_API_KEY"] == "secret-value"
    attempt = Files(plan.folder).latest()["magnitude-0.1-austen-s0"]
    assert f"#SBATCH --job-name=s-{attempt.uid}\n#SBATCH" in trials
    assert f"--comment=prunelab/{attempt.uid}" in trials
    assert not list(plan.folder.rglob("*.pkl"))


def test_odd_names_and_folders(tmp_path: Path, fake: Fake) -> None:
    root = tmp_path / "50%j of it"
    plan = _plan(root, ["magnitude"], [0.1], f"calibration.name='../org/data %x {'n' * 240}'")
    run(plan, SETTINGS)
    files = Files(plan.folder)
    assert plan.trials[0].name in files.latest()
    assert len(list(files.jobs.iterdir())) == len(files.latest())
    assert all(path.is_relative_to(root) for path in tmp_path.rglob("*.json"))
    for script in fake.scripts():
        for line in script.splitlines():
            if line.startswith("#SBATCH") and ("--output" in line or "--error" in line):
                assert "50%%j" in line  # sbatch reads %j as a job's number


def test_live_jobs_are_not_submitted_again(plan: Plan, fake: Fake) -> None:
    run(plan, SETTINGS)
    files = Files(plan.folder)
    lines = []
    for attempt in files.latest().values():
        number = files.id_of(attempt.uid)
        lines.append(f"{number}_{attempt.index}|PENDING|s-{attempt.uid}|0:00||Dependency")
    fake.squeue(*lines)
    for path in files.slurm.glob("*/id"):
        path.unlink()  # the driver died before it could note them
    (event,) = run(plan, SETTINGS)
    assert event.values == {"jobs": 0, "there": 8}
    assert len(fake.scripts()) == 3
    assert len(list(files.slurm.glob("*/id"))) == 3
    # rows of somebody else's array under the same ids are not ours
    fake.squeue(*(f"{line.partition('|')[0]}|RUNNING|theirs|0:10|n1|None" for line in lines))
    assert not any(view.live for view in read_jobs(plan, files, set()).values())


def test_a_refusal_takes_everything_back(plan: Plan, fake: Fake) -> None:
    (fake.folder / "refuse").write_text("103")
    with pytest.raises(
        LaunchError,
        match=r"refused jobs of 3 GPUs.*default partition.*not available.*Nothing is left submitted",
    ):
        run(plan, Settings(gpus=3, environment=("PATH",)))
    assert sorted((fake.folder / "cancelled").read_text().split()) == ["101", "102"]
    assert Files(plan.folder).latest() == {}


def test_no_answer_says_nothing_about_jobs(plan: Plan, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run(plan, SETTINGS)
    path = fake.folder / "squeue-broken"
    path.mkdir()
    (path / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    (path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(LaunchError, match="Unable to contact"):
        run(plan, SETTINGS)
    assert len(fake.scripts()) == 3


@pytest.mark.parametrize(
    ("state", "exit_code", "says"),
    [
        ("TIMEOUT", "0:0", "time limit of 30 min"), ("OUT_OF_MEMORY", "0:125", "out of memory: it had 3 GiB"),
        ("NODE_FAIL", "0:0", "node failure"), ("CANCELLED by 0", "0:0", "cancelled"), ("FAILED", "9:0", "failed (9:0)"),
        ("FAILED", "0:9", "killed by SIGKILL"), ("PREEMPTED", "0:0", "preempted, and not queued again"),
    ],
)  # fmt: skip
def test_reasons_by_accounting(plan: Plan, fake: Fake, state: str, exit_code: str, says: str) -> None:
    run(plan, SETTINGS)
    files = Files(plan.folder)
    parent = files.latest()["dense-embedded_llama"]
    rows = [
        f"{files.id_of(a.uid)}_{a.index}|COMPLETED|s-{a.uid}|0|n1|None|0:0"
        for a in files.latest().values()
        if a != parent
    ]
    lost = f"{files.id_of(parent.uid)}_0|{state}|s-{parent.uid}|0|n1|None|{exit_code}"
    (fake.folder / "sacct.out").write_text("\n".join([lost, *rows]) + "\n")
    note = files.folder(parent.uid) / "0.json"
    note.write_text(json.dumps({"starts": [{"node": "n1", "time": 1.0}], "state": "running"}))
    views = read_jobs(plan, files, set())
    assert says in views["dense-embedded_llama"].reason
    assert views["magnitude-0.1-austen-s0"].state == "skipped"
    assert views["magnitude-0.1-austen-s0"].reason == "dependency: dense-embedded_llama failed"


def test_reasons_without_accounting(plan: Plan, fake: Fake) -> None:
    run(plan, SETTINGS)
    views = read_jobs(plan, Files(plan.folder), set())
    assert "gone" in views["calibrate-austen-test-64x128"].reason
    key = views["dense-embedded_llama"].stages[0]
    note = Files(plan.folder).folder(views["dense-embedded_llama"].uid) / "0.json"
    note.write_text(json.dumps({"starts": [{"node": "n1", "time": 1.0}], "state": "failed"}))
    failure_path(plan, key).parent.mkdir()
    failure_path(plan, key).write_text(json.dumps({"reason": "ValueError: no", "time": time.time()}))
    assert read_jobs(plan, Files(plan.folder), set())["dense-embedded_llama"].reason == "ValueError: no"


def test_accounting_of_a_step_that_ran_out_of_memory() -> None:
    rows = parse_accounting(
        "7_3|FAILED|s-abc|1|n1|None|9:0\n7_3.batch|FAILED|batch|1|n1||9:0\n7_3.0|OUT_OF_MEMORY|python|1|n1||0:125\n"
    )
    assert rows[("abc", 3)].state == "OUT_OF_MEMORY"


def test_a_requeued_task_listed_twice_lives(fake: Fake) -> None:
    fake.squeue("7_3|PENDING|s-abc|0:00||BeginTime", "7_3|NODE_FAIL|s-abc|0:10|n1|None", "7_4|WEIRD")
    rows = scheduler.queued()
    assert list(rows) == [("abc", 3)]
    assert rows[("abc", 3)].live


def test_resources_by_size_and_by_word(tmp_path: Path) -> None:
    small = _plan(tmp_path, ["magnitude"], [0.1])
    job = jobs(small, set())[-1]
    assert (need(small, job, Settings()).gpus, need(small, job, Settings()).cpus) == (0, 1)
    assert need(small, job, Settings(mem_gib=64, time_min=5, gpus=2, cpus=6)).mem_gib == 64
    large = _plan(tmp_path, ["surgeon"], [0.1], "model=llama2_7b")
    *shared, own = jobs(large, set())
    four = need(large, own, Settings(tasks_per_node=4, nodes=2))
    assert str(four).startswith("2 nodes of 4 tasks: 4 GPUs, 4 x 8 CPUs, ")
    assert four.mem_gib > 3 * need(large, own, Settings()).mem_gib
    assert need(large, own, Settings(gpus=2)).tasks == 2
    assert need(small, job, Settings(tasks_per_node=2, nodes=2)) == need(
        small, job, Settings()
    )  # no statistics
    for one in shared:
        assert (need(large, one, Settings(tasks_per_node=4, nodes=2)).tasks) == 1
    asked = need(large, own, Settings())
    assert asked.gpus == 1
    assert 30 < asked.mem_gib < 120
    assert weights_gib(
        {"source": "hub", "id": "meta-llama/Llama-2-7b-hf", "dtype": "float16"}
    ) == pytest.approx(13, rel=0.05)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"partitoin": "x"}, "Did you mean 'partition'"), ({"time_min": 2.5}, "an integer"), ({"gpus": -1}, "x >= 0"),
        ({"mem_gib": "64G"}, "a number"), ({"setup": "module load"}, "a list"),
        ({"extra": {"array": "0-3"}}, "does not set itself"), ({"extra": {"ntasks_per_node": 2}}, "does not set itself"),
        ({"environment": ["PATH", "HF_TOKEN"]}, "no secrets"),
        ({"tasks_per_node": 0}, "x >= 1"), ({"tasks_per_node": 4, "gpus": 2}, "at most the 2 of hydra.launcher.gpus"),
    ],
)  # fmt: skip
def test_settings_are_checked(values: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Settings.read(values)


def test_more_tasks_than_gpus_also_at_a_retry() -> None:
    with pytest.raises(ConfigError, match="a GPU per task"):
        Settings(tasks_per_node=4).changed(gpus=2)
    assert Settings(tasks_per_node=4).changed(gpus=0).gpus == 0


def test_each_task_has_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, local, size, left in (("2,5", "1", "2", "5"), ("2,5", "0", "1", "2,5"), ("", "1", "2", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        monkeypatch.setenv("SLURM_LOCALID", local)
        monkeypatch.setenv("SLURM_NTASKS", size)
        assert own_gpu() == given
        assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_secrets_never_cross() -> None:
    names = (
        "WANDB_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "OPENAI_API_KEY",
        "MY_CREDENTIALS",
    )
    assert all(is_secret(name) for name in names)
    assert not any(is_secret(name) for name in ("HF_HOME", "HF_TOKEN_PATH", "PYTHONPATH", "KEYBOARD", "PATH"))
    crossed = job_environment(
        ("HF_*", "WANDB_*"), 2, {"HF_TOKEN": "t", "HF_HOME": "h", "WANDB_API_KEY": "k", "OTHER": "o"}
    )
    assert (crossed["HF_HOME"], crossed["OMP_NUM_THREADS"]) == ("h", "2")
    assert not {"HF_TOKEN", "WANDB_API_KEY", "OTHER"} & set(crossed)
    with pytest.raises(ConfigError, match=r"netrc"):
        job_environment(("WANDB_API_KEY",), 1)


def test_status_of_a_thousand_trials(tmp_path: Path, fake: Fake) -> None:
    plan = _plan_of_a_thousand(tmp_path)
    assert len(plan.trials) == 1000
    (event,) = run(plan, SETTINGS)
    assert event.values["jobs"] > 1000
    files = Files(plan.folder)
    ids = {path.parent.name: path.read_text().strip() for path in files.slurm.glob("*/id")}
    fake.squeue(
        *(f"{ids[a.uid]}_{a.index}|PENDING|s-{a.uid}|0:00||Priority" for a in files.latest().values())
    )
    (fake.folder / "squeue-calls").unlink(missing_ok=True)
    code = "import sys; from prunelab.cli import main; c = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(c)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    began = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", code, "status", str(plan.folder)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1000 pending" in done.stdout
    assert (fake.folder / "squeue-calls").read_text() == "x\n"
    assert not (fake.folder / "sacct-calls").exists()
    assert time.process_time() - began < 2


def test_an_orphan_commits_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "prune" / "s"
    record = Record("prune", "k" * 64, "s", {}, {}, {"m": 1.0}, {}, {})
    begin(folder, {}, "100.0 n1")
    begin(folder, {}, "100.1 n2")  # the copy that was queued again
    with pytest.raises(Superseded, match=r"taken over by 100.1 n2"):
        commit(folder, record, "100.0 n1")
    assert not (folder / "DONE").exists()
    commit(folder, record, "100.1 n2")
    with pytest.raises(Superseded, match="nobody"):
        commit(folder, record, "100.0 n1")


def test_a_checkpoint_ends_the_work_if_asked(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    work = begin(folder, {})
    asked: list[bool] = []
    context = Context(
        folder, work, work, {}, {}, None, lambda *a: None, lambda row: None, lambda: bool(asked)
    )
    context.checkpoint(1)
    asked.append(True)
    with pytest.raises(Interrupted, match="step 2"):
        context.checkpoint(2)
    assert context.resume()[0] == 2
