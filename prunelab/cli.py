"""``prunelab status|attach|cancel|retry|logs|report|export|sync STUDY``: reads plans and the store; torch is never imported here.

Sweeps themselves are started by ``python -m prunelab``, so that Hydra's overrides, help and completion apply.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunelab.config.place import settle_home
from prunelab.errors import LaunchError, PrunelabError, StoreError, nearest
from prunelab.files import file_name
from prunelab.model_files import FORMS, OWN
from prunelab.terminal import write_what_can_be_shown

if TYPE_CHECKING:
    from prunelab.plan.study import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code. ``prunelab +exp=... -m`` works as ``python -m prunelab`` does."""
    write_what_can_be_shown()
    words = list(sys.argv[1:] if argv is None else argv)
    if (
        words
        and words[0] not in _COMMANDS
        and ("=" in words[0] or (words[0].startswith("-") and words[0] not in ("-h", "--help")))
    ):
        from prunelab.launch.command.entry import run

        return run(["prunelab", *words])
    arguments = _parser().parse_args(words)
    try:
        return _COMMANDS[arguments.command](arguments)
    except PrunelabError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


_OF_A_STORE = ("status", "report", "export", "sync")  # commands that read what is finished, wherever it lies


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunelab",
        description="Look after studies. Start them with: python -m prunelab +exp=surgeon_sweep -m",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = {
        "status": "a line per trial: what is done, running, failed and why; where and as which job on a cluster",
        "attach": "follow a study's jobs on the cluster; Ctrl-C leaves them running",
        "cancel": "cancel a study's jobs on the cluster, or those of single trials",
        "retry": "run what failed or is missing, from the study's plan, where it ran before",
        "logs": "the end of a job's log, or the last line of every job's",
        "report": "HTML, Markdown, CSV and PNG from what the store has",
        "export": "a finished trial's model as an ordinary checkpoint with a model card",
        "sync": "send W&B what was tracked offline or broke off; a second call does nothing",
    }
    for name, what in words.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("study", help="a study's name, or its folder")
        if name in ("cancel", "logs"):
            command.add_argument("jobs", nargs="*", help="names of trials or jobs, as status shows them")
        if name == "export":
            command.add_argument("trial", help="name of a trial, as status shows it")
            command.add_argument("folder", type=Path, help="where to write; a new or empty folder")
        command.add_argument(
            "--root", type=Path, default=None, help="where studies are (default: $PRUNELAB_HOME or ./outputs)"
        )
        if name in _OF_A_STORE:
            command.add_argument(
                "--store",
                type=Path,
                default=None,
                metavar="FOLDER",
                help="where the store is, if it was moved",
            )
        _options(name, command)
    return parser


def _options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "status":
        command.add_argument(
            "--all", action="store_true", help="every trial, not only the first of each state"
        )
    elif name == "report":
        command.add_argument(
            "--out", type=Path, default=None, help="folder to write to (default: STUDY/report)"
        )
    elif name == "export":
        command.add_argument("--force", action="store_true", help="replace what is in the folder")
        command.add_argument(
            "--compact",
            action="store_true",
            help="without the removed heads, hidden units, rows and columns, instead of with zeros in their place",
        )
        command.add_argument(
            "--form", choices=FORMS, default=OWN,
            help="of --compact: own widths in every block (default); padded with zeros to an ordinary checkpoint of the same "
            "architecture; or decilm, of a Llama, which vLLM reads",
        )  # fmt: skip
    elif name == "sync":
        command.add_argument(
            "--timeout", type=float, default=None, metavar="SECONDS",
            help="time for each run (default: the study's tracking.finish_timeout)",
        )  # fmt: skip
    elif name == "logs":
        command.add_argument("-n", type=int, default=20, help="lines of each log (default: 20)")
    elif name == "retry":
        command.add_argument("--inline", action="store_true", help="in this process, for a debugger")
        command.add_argument(
            "--local", action="store_true", help="in this machine's pool, wherever it ran before"
        )
        command.add_argument(
            "--wait", action="store_true", help="on a cluster: follow the jobs (default: submit and return)"
        )
        command.add_argument(
            "--mem", type=_gib, default=None, metavar="64G", help="memory of each job on the cluster"
        )
        command.add_argument(
            "--time", type=_minutes, default=None, metavar="MIN|H:MM:SS", help="time of each job"
        )
        command.add_argument("--gpus", type=int, default=None, help="GPUs of each job")
        command.add_argument("--cpus", type=int, default=None, help="CPUs of each job")
        command.add_argument("--partition", default=None, help="another partition")


def _gib(text: str) -> float:
    units = {"M": 1 / 1024, "G": 1.0, "T": 1024.0}
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in units else "G"
    try:
        value = float(number.removesuffix(unit)) * units[unit]
    except ValueError:
        value = 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a size such as 64G or 500M")
    return value


def _minutes(text: str) -> int:
    try:
        days, _, clock = text.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if len(parts) == 1:
            minutes = parts[0]
        else:
            hours, minute = parts[:2] if len(parts) == 3 or days else (0, parts[0])
            minutes = 60 * hours + minute
        minutes += 24 * 60 * int(days or 0)
    except ValueError:
        minutes = 0
    if minutes <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are minutes, H:MM:SS or D-HH:MM:SS")
    return minutes


def study_folder(name: str, root: Path | None) -> Path:
    """Return the folder of a study given by name or path; raises StoreError naming the studies there are."""
    place = Path(name).expanduser()
    if (place / "plan.json").is_file():
        return place.absolute()
    studies = (root or settle_home()).expanduser() / "studies"
    if (studies / name / "plan.json").is_file():
        return (studies / name).absolute()
    known = sorted(path.parent.name for path in studies.glob("*/plan.json"))
    there = f"There are: {', '.join(known)}." if known else "There are none yet; --root says where to look."
    raise StoreError(f"No study {name!r} under {studies.absolute()}. {there} {nearest(name, known)}".rstrip())


def _plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan of the study that was named; raises StoreError if there is none, or its store is not there."""
    from prunelab.plan.study import load_plan, require_store

    store = getattr(arguments, "store", None)
    plan = load_plan(study_folder(arguments.study, arguments.root), store)
    require_store(plan.folder, plan.store, asked=store is not None)
    return plan


def _status(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from prunelab.launch.monitor.status import show_status

    return show_status(_plan(arguments), Console(), whole=arguments.all)


def _attach(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from prunelab.launch.slurm import command

    return command.attach(_plan(arguments), Console())


def _cancel(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from prunelab.launch.slurm import command
    from prunelab.plan.study import load_plan

    folder = study_folder(arguments.study, arguments.root)
    if not command.is_submitted(folder):
        raise LaunchError(f"{folder} has no jobs on a cluster; Ctrl-C stops a study that runs here.")
    return command.cancel(load_plan(folder), Console(), arguments.jobs)


def _logs(arguments: argparse.Namespace) -> int:
    folder = study_folder(arguments.study, arguments.root)
    found = {path.stem: path for path in sorted((folder / "logs").glob("*.log"))}
    asked = {name if name in found else file_name(name): name for name in arguments.jobs}
    for stem, name in asked.items():
        if stem not in found:
            raise StoreError(f"{folder} has no log of {name!r}. {nearest(name, found)}".rstrip())
    for name in asked or found:
        lines = found[name].read_text(encoding="utf-8", errors="replace").splitlines()
        if arguments.jobs:
            print(f"==> {found[name]}", *lines[-arguments.n :], sep="\n")
        else:
            print(f"{name}: {lines[-1] if lines else ''}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from prunelab.report.collect import collect
    from prunelab.report.render import render_report

    study = collect(study_folder(arguments.study, arguments.root), arguments.store)
    print(render_report(study, arguments.out))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from prunelab.launch.command.export import export

    folder = arguments.folder.expanduser().absolute()
    options = {"force": arguments.force, "compact": arguments.compact, "form": arguments.form}
    print(export(_plan(arguments), arguments.trial, folder, **options))
    return 0


def _sync(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from prunelab.launch.track.sync_view import show_sync

    return show_sync(_plan(arguments), Console(), arguments.timeout)


def _retry(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from prunelab.launch.run.drive import drive
    from prunelab.launch.run.inline import Inline
    from prunelab.launch.run.pool import Pool
    from prunelab.launch.slurm import command
    from prunelab.launch.slurm.settings import Settings

    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m prunelab` has it: classes of one's own may lie here
        sys.path.insert(0, here)
    plan = _plan(arguments)
    if command.is_submitted(plan.folder) and not arguments.inline and not arguments.local:
        settings = Settings.load(plan.folder / "slurm").changed(
            mem_gib=arguments.mem, time_min=arguments.time, gpus=arguments.gpus, cpus=arguments.cpus,
            partition=arguments.partition,
        )  # fmt: skip
        return command.retry(plan, Console(), settings, wait=arguments.wait)
    return drive(plan, Inline() if arguments.inline else Pool(), Console(), dry_run=False, report=True)


_COMMANDS = {
    "status": _status, "attach": _attach, "cancel": _cancel, "retry": _retry, "logs": _logs, "report": _report,
    "export": _export, "sync": _sync,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
