"""Hydra's side of launching: ``hydra/launcher=local|inline|slurm`` and a sweeper that leaves checking to them.

They are registered when prunelab starts, so no second top-level package is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write
from rich.console import Console

from prunelab.config import hydra_inside
from prunelab.config.compose import Composer
from prunelab.config.hydra_inside import JobReturn
from prunelab.errors import ConfigError, StoreError
from prunelab.files import replace_file
from prunelab.launch.command.study import plan_study
from prunelab.launch.run import drive
from prunelab.launch.run.base import Launcher
from prunelab.launch.run.inline import Inline
from prunelab.launch.run.pool import Pool
from prunelab.launch.slurm.launcher import Slurm
from prunelab.launch.slurm.settings import Settings
from prunelab.store.layout import check_writable

BasicSweeper: Any = hydra_inside.basic_sweeper()
_SWEEP = "multirun.yaml"  # what Hydra writes of a sweep


class PrunelabSweeper(BasicSweeper):
    """Hydra's basic sweeper without its check that every combination composes: 20 a second, one mistake at a time."""

    def sweep(self, arguments: list[str]) -> Any:
        """Sweep, once the study's folder is known to be one: Hydra writes there before anything is checked."""
        paths, hydra = self.config.paths, self.config.hydra
        if not str(paths.root).strip():
            raise ConfigError(
                "paths.root", paths.root, "a folder", "Leave it away for $PRUNELAB_HOME or ./outputs."
            )
        folder = Path(hydra.sweep.dir).expanduser()
        with ExitStack() as stack:
            try:
                check_writable(folder, "paths.study")
                replace_file(folder / _SWEEP, b"")  # Hydra writes into it, and could not into somebody else's
            except StoreError:
                if not (folder / "plan.json").is_file():
                    raise
                # somebody else's study: if all of it is finished it is only read, and `run_study` knows
                folder = Path(stack.enter_context(TemporaryDirectory()))
            with read_write(hydra):
                hydra.sweep.dir = str(folder)
            return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: the launcher composes and checks all of them at once, and much faster."""


class StudyLauncher(HydraLauncher):
    """Plans all jobs of a sweep as one study and runs it; subclasses only say where."""

    def __init__(self, dry_run: bool, report: bool) -> None:
        _check_flags(dry_run=dry_run, report=report)
        self._dry_run, self._report = dry_run, report
        self._context: HydraContext | None = None
        self._config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self._context, self._config = hydra_context, config

    def backend(self) -> Launcher:
        """Return what runs the jobs."""
        return Pool()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Plan and run; a failed trial ends the process with exit code 1 after all others are done."""
        assert self._context is not None
        assert self._config is not None
        loader: Any = hydra_inside.remembering(self._context.config_loader)  # type: ignore[arg-type]
        hydra_overrides = OmegaConf.to_container(self._config.hydra.overrides.hydra)
        assert isinstance(hydra_overrides, list)
        plan = plan_study(Composer(loader, [str(o) for o in hydra_overrides]), job_overrides, sys.argv[1:])
        code = drive.drive(plan, self.backend(), Console(), dry_run=self._dry_run, report=self._report)
        if code:
            raise SystemExit(code)
        return [hydra_inside.completed(trial.overrides, trial.stages) for trial in plan.trials]


class LocalLauncher(StudyLauncher):
    """A pool of worker processes on this machine."""


class InlineLauncher(StudyLauncher):
    """Everything in this process."""

    def backend(self) -> Launcher:
        """Return the launcher that runs jobs here."""
        return Inline()


class SlurmLauncher(StudyLauncher):
    """Jobs on a SLURM cluster."""

    def __init__(self, dry_run: bool, report: bool, wait: bool, **settings: Any) -> None:
        super().__init__(dry_run, report)
        _check_flags(wait=wait)
        self._wait = wait
        plain = {
            key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in settings.items()
        }
        self._settings = Settings.read(plain)

    def backend(self) -> Launcher:
        """Return the launcher that submits jobs, and follows them if ``wait``."""
        return Slurm(self._settings, wait=self._wait)


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):  # any text counts as true
            raise ConfigError(f"hydra.launcher.{name}", value, "true | false")


def register() -> None:
    """Make the classes known to Hydra, and importable, under the names that conf/hydra uses."""
    plugins = (PrunelabSweeper, LocalLauncher, InlineLauncher, SlurmLauncher)
    hydra_inside.register("prunelab", sys.modules[__name__], plugins)
