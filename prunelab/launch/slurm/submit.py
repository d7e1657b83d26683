"""Jobs to the cluster through submitit: one array per (resources, parents), intent on disk before each.

Of submitit we use the batch script, its validation and the call of sbatch. Its pickled functions and results are
left out: what a task runs is a line of JSON, what comes out is in the store.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunelab.errors import LaunchError
from prunelab.launch.slurm import scheduler
from prunelab.launch.slurm.environment import job_environment, only
from prunelab.launch.slurm.estimate import Need
from prunelab.launch.slurm.files import Files
from prunelab.launch.slurm.settings import Settings
from prunelab.plan.graph import Job

_ARRAY = 500  # tasks of one array; clusters allow 1,000 and more
_HINTS = {
    "partition": "`sinfo -s` lists the partitions; hydra.launcher.partition=NAME.",
    "node configuration is not available": "No node of the partition has that many GPUs, CPUs or that much memory "
    "(`sinfo -o '%P %c %m %G'`); ask for less with hydra.launcher.gpus, cpus, mem_gib.",
    "account": "`sacctmgr show associations user=$USER` lists accounts; hydra.launcher.account=NAME.",
    "qos": "`sacctmgr show qos` lists them; hydra.launcher.qos=NAME.",
    "time limit": "Ask for less time, hydra.launcher.time_min=N, or another partition.",
}


def groups(
    jobs: Sequence[Job], needs: Mapping[str, Need], known: Mapping[str, str]
) -> Iterator[tuple[Need, tuple[str, ...], tuple[str, ...], list[Job]]]:
    """Yield ``(need, after, after_any, jobs)``, parents before children; each is one array.

    ``known`` maps jobs that are on the cluster already to ids; parents that are neither there nor among ``jobs`` are done.
    """
    waiting, placed = {job.name: job for job in jobs}, set(known)
    while waiting:
        ready: dict[Any, list[Job]] = {}
        for job in waiting.values():
            parents = {n for n in (*job.after, *job.after_any) if n in waiting}
            if not parents - placed:
                after = tuple(sorted(n for n in job.after if n in placed))
                after_any = tuple(sorted(n for n in job.after_any if n in placed))
                ready.setdefault((needs[job.name], after, after_any), []).append(job)
        if not ready:
            raise LaunchError(
                f"jobs that wait for each other: {', '.join(waiting)}. Please report this plan."
            )
        for (need, after, after_any), members in ready.items():
            for start in range(0, len(members), _ARRAY):
                yield need, after, after_any, members[start : start + _ARRAY]
            for job in members:
                del waiting[job.name]
                placed.add(job.name)


def submit(
    study: str, files: Files, plan_file: Path, jobs: Sequence[Job], needs: Mapping[str, Need], settings: Settings,
    known: Mapping[str, str], say: Callable[[int], None] = lambda n: None,
) -> dict[str, str]:  # fmt: skip
    """Submit jobs; return the id of each. ``known`` are ids of jobs that are already there.

    If sbatch refuses one array, those submitted before in this call are cancelled: nothing is half submitted.
    """
    ids, sent = dict(known), []
    for need, after, after_any, members in groups(jobs, needs, known):
        uid = uuid.uuid4().hex[:12]
        sent.append((uid, members))
        try:
            task_file = files.intend(uid, plan_file, members, need, time.time())
            depends = _dependency([ids[name] for name in after], [ids[name] for name in after_any])
            array = _sbatch(study, files, uid, task_file, len(members), need, settings, depends)
        except Exception:
            _take_back(files, sent)
            raise
        files.set_id(uid, array)
        ids |= {job.name: f"{array}_{index}" for index, job in enumerate(members)}
        say(len(ids) - len(known))
    return {job.name: ids[job.name] for job in jobs}


def _take_back(files: Files, sent: Sequence[tuple[str, Sequence[Job]]]) -> None:
    scheduler.cancel(found for uid, _ in sent if (found := files.id_of(uid)))
    for uid, jobs in sent:
        files.withdraw(uid, jobs)


def _dependency(after: Sequence[str], after_any: Sequence[str]) -> str:
    parts = [f"afterok:{':'.join(after)}"] if after else []
    return ",".join(parts + ([f"afterany:{':'.join(after_any)}"] if after_any else []))


def _sbatch(
    study: str,
    files: Files,
    uid: str,
    task_file: Path,
    count: int,
    need: Need,
    settings: Settings,
    dependency: str,
) -> str:
    import submitit  # late: 0.3 s that status and attach do not owe
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    environment = job_environment(settings.environment, need.threads)
    try:
        executor = submitit.SlurmExecutor(folder=files.folder(uid))
    except RuntimeError as error:
        raise LaunchError(
            f"{error} hydra/launcher=slurm needs sbatch and srun on PATH; hydra/launcher=local does not."
        ) from None
    executor.update_parameters(**_parameters(study, uid, files.folder(uid), need, settings, dependency))
    executor.parameters["map_count"] = count
    python = settings.python or shlex.quote(sys.executable)
    try:
        with only(environment):
            return executor._submit_command(
                f"{python} -u -m prunelab.launch.slurm.task {shlex.quote(str(task_file))}"
            ).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        raise LaunchError(_refusal(str(error), need, settings)) from None


def _parameters(
    study: str, uid: str, folder: Path, need: Need, settings: Settings, dependency: str
) -> dict[str, Any]:
    more = {"requeue": True, "export": "ALL", **(settings.extra or {}), **_outputs(folder, "0")}
    if dependency:
        more |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    values: dict[str, Any] = {
        "job_name": f"{study}-{uid}", "comment": f"prunelab/{uid}", "partition": settings.partition, "account": settings.account,
        "qos": settings.qos, "constraint": settings.constraint, "time": need.time_min, "mem": f"{int(need.mem_gib * 1024)}M",
        "nodes": need.nodes, "ntasks_per_node": need.tasks, "cpus_per_task": need.cpus, "gpus_per_node": need.gpus or None,
        "array_parallelism": settings.array_parallelism, "signal_delay_s": settings.signal_s, "wckey": None,
        "setup": list(settings.setup), "teardown": _teardown(settings.kill_requeues), "additional_parameters": more,
        # srun no longer takes CPUs per task from sbatch; and a task that dies must not leave the others waiting for it
        "srun_args": ["--export=ALL", f"--cpus-per-task={need.cpus}", "--kill-on-bad-exit=1",
                      *(f"--{name}={path}" for name, path in _outputs(folder, "%t").items())],
    }  # fmt: skip
    return {key: value for key, value in values.items() if value is not None or key == "wckey"}


def _outputs(folder: Path, task: str) -> dict[str, str]:
    """Return where SLURM writes: it replaces %j and its like in the whole path, so those of a folder's name stand twice."""
    start = f"{str(folder.absolute()).replace('%', '%%')}/%A_%a_{task}_log"
    return {"output": f"{start}.out", "error": f"{start}.err"}


def _teardown(times: int) -> list[str]:
    """Return shell lines that queue a job again whose Python was killed, unless the job was cancelled.

    137 is SIGKILL; 143 is srun's SIGTERM to the other tasks of a job after SIGKILL to one of them.
    """
    return [
        "code=$?",
        "if { [ $code -eq 137 ] || [ $code -eq 143 ]; } &&",
        f'   [ "${{SLURM_RESTART_COUNT:-0}}" -lt {times} ] &&',
        '   [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then',
        '  echo "prunelab: killed; asking for another start" >&2; scontrol requeue "$SLURM_JOB_ID"; fi',
        "exit $code",
    ]


def _refusal(text: str, need: Need, settings: Settings) -> str:
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    words = re.sub(r"^sbatch: (error: )?|Batch job submission failed: ", "", (lines or [text.strip()])[-1])
    words = re.sub(r"^.*?Batch job submission failed: |^sbatch: error: ", "", words)
    hint = next((hint for word, hint in _HINTS.items() if word in text.lower()), "")
    where = f"partition {settings.partition}" if settings.partition else "the default partition"
    return f"sbatch refused jobs of {need} on {where}: {words.rstrip('.')}. Nothing is left submitted. {hint}".rstrip()
