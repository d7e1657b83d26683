"""Which variables of the submitting shell a job may see: an allow-list, and never a secret."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from prunelab.errors import ConfigError
from prunelab.launch.run.worker import worker_environment
from prunelab.tracking.secret import is_secret

_NEVER = ("SBATCH_EXPORT", "SLURM_EXPORT_ENV")  # they would open the list again


def job_environment(
    allowed: Sequence[str], threads: int, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the variables that cross, plus those that fix threads and determinism as the local pool does.

    ``allowed`` holds names and patterns such as ``LC_*``. A pattern never takes a name that looks like a secret
    (``*_TOKEN``, ``*_API_KEY``, ...), unless it ends in ``_PATH`` or ``_FILE``; raises ConfigError if one is named outright.
    """
    check_names(allowed)
    found = {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if any(fnmatchcase(name, pattern) for pattern in allowed)
        and not is_secret(name)
        and name not in _NEVER
    }
    return found | worker_environment(threads)


def check_names(allowed: Sequence[str]) -> None:
    """Raise ConfigError if a secret is named outright."""
    for name in allowed:
        if is_secret(name):
            raise ConfigError(
                "hydra.launcher.environment", name, "names of variables that are no secrets",
                "A job reads keys from ~/.netrc (wandb login) or from a file whose path crosses (HF_TOKEN_PATH).",
            )  # fmt: skip


@contextmanager
def only(variables: Mapping[str, str]) -> Iterator[None]:
    """Run a block whose child processes see these variables and no others."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
