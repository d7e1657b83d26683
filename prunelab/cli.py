"""``prunelab status|report|retry STUDY``: reads plans and the store; torch is never imported here.

Sweeps themselves are started by ``python -m prunelab``, so that Hydra's overrides, help and completion apply.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prunelab.errors import PrunelabError, StoreError, nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code. ``prunelab +exp=... -m`` works as ``python -m prunelab`` does."""
    words = list(sys.argv[1:] if argv is None else argv)
    if (
        words
        and words[0] not in _COMMANDS
        and ("=" in words[0] or (words[0].startswith("-") and words[0] not in ("-h", "--help")))
    ):
        from prunelab.launch.entry import run

        return run(["prunelab", *words])
    arguments = _parser().parse_args(words)
    try:
        return _COMMANDS[arguments.command](arguments)
    except PrunelabError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunelab",
        description="Look after studies. Start them with: python -m prunelab +exp=surgeon_sweep -m",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = {
        "status": "a line per trial: what is done, running, failed and why",
        "report": "HTML, Markdown, CSV and PNG from what the store has",
        "retry": "run what failed or is missing, from the study's plan",
    }
    for name, what in words.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("study", help="a study's name, or its folder")
        command.add_argument(
            "--root", type=Path, default=None, help="where studies are (default: $PRUNELAB_HOME or ./outputs)"
        )
        if name == "status":
            command.add_argument(
                "--all", action="store_true", help="every trial, not only the first of each state"
            )
        if name == "report":
            command.add_argument(
                "--out", type=Path, default=None, help="folder to write to (default: STUDY/report)"
            )
        if name == "retry":
            command.add_argument("--inline", action="store_true", help="in this process, for a debugger")
    return parser


def study_folder(name: str, root: Path | None) -> Path:
    """Return the folder of a study given by name or path; raises StoreError naming the studies there are."""
    if (Path(name) / "plan.json").is_file():
        return Path(name).absolute()
    studies = (root or Path(os.environ.get("PRUNELAB_HOME", "outputs"))) / "studies"
    if (studies / name / "plan.json").is_file():
        return (studies / name).absolute()
    known = sorted(path.parent.name for path in studies.glob("*/plan.json"))
    there = f"There are: {', '.join(known)}." if known else "There are none yet; --root says where to look."
    raise StoreError(f"No study {name!r} under {studies.absolute()}. {there} {nearest(name, known)}".rstrip())


def _status(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from prunelab.launch.status import status_table, trial_states
    from prunelab.plan.study import load_plan

    plan = load_plan(study_folder(arguments.study, arguments.root))
    states = trial_states(plan)
    Console().print(status_table(plan, states, whole=arguments.all))
    return 1 if any(state.failed for state in states) else 0


def _report(arguments: argparse.Namespace) -> int:
    from prunelab.report.render import render_report

    print(render_report(study_folder(arguments.study, arguments.root), arguments.out))
    return 0


def _retry(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from prunelab.launch.drive import drive
    from prunelab.launch.inline import Inline
    from prunelab.launch.pool import Pool
    from prunelab.plan.study import load_plan

    plan = load_plan(study_folder(arguments.study, arguments.root))
    return drive(plan, Inline() if arguments.inline else Pool(), Console(), dry_run=False, report=True)


_COMMANDS = {"status": _status, "report": _report, "retry": _retry}


if __name__ == "__main__":
    sys.exit(main())
