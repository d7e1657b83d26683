"""``python -m prunelab``: hands the command line to Hydra, and explains what Hydra cannot compose."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import hydra
from hydra.errors import HydraException, SearchPathException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from prunelab.config import hydra_inside
from prunelab.config.place import conf_folder, settle_home
from prunelab.errors import ConfigError, PrunelabError
from prunelab.launch.command.plugin import register
from prunelab.launch.command.quote import unreadable
from prunelab.launch.command.study import explain

# options of Hydra that take a value; the next word is theirs and no override
_VALUED = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
           "--info", "-i", "--experimental-rerun"}  # fmt: skip


def run(argv: Sequence[str]) -> int:
    """Run Hydra on ``argv``; return the exit code. Mistakes of ours and of Hydra's composition print as text."""
    register()
    settle_home()
    words = with_swept_groups(ordered(argv[1:]))
    sys.argv = [argv[0], *words]
    given = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(_no_single_run)()
    except PrunelabError as error:
        return _print(str(error))
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # Hydra's, of method=null
            raise
        return _print(f"{error}. Name an option of the group; leave the word out for the default.")
    except (HydraException, OmegaConfBaseException) as error:
        if given == "1":
            raise
        if (mistake := unreadable(words)) is not None:
            return _print(str(mistake))
        return _print(_explained(words) or _hydras_words(error))
    finally:
        if given is None:
            del os.environ["HYDRA_FULL_ERROR"]
    return 0


def ordered(words: Sequence[str]) -> list[str]:
    """Put overrides before flags: Hydra's parser refuses overrides that come after ``+exp=x -m``."""
    overrides, flags, index = [], [], 0
    while index < len(words):
        word = words[index]
        if word.startswith("-") and word != "-":
            flags.append(word)
            if word in _VALUED and index + 1 < len(words) and "=" not in words[index + 1]:
                index += 1
                flags.append(words[index])
        else:
            overrides.append(word)
        index += 1
    return [*overrides, *flags]


def with_swept_groups(words: Sequence[str]) -> list[str]:
    """Let ``method.block=64`` stand beside ``method=wanda,sparsegpt``.

    Hydra composes once without swept overrides before it composes the trials, and refuses a key which that option
    lacks. With ``++`` it reaches the trials, where ours are the checks: a trial whose option has no such key is a mistake.
    """
    given = [(word.partition("=")[0], word) for word in words]
    swept = {key for key, word in given if "." not in key and "," in word}
    return [f"++{word}" if key.partition(".")[0] in swept - {key} else word for key, word in given]


def _no_single_run(config: DictConfig) -> None:
    raise ConfigError(
        "hydra.mode", "RUN", "MULTIRUN", "A single trial is a sweep of one; leave hydra.mode alone."
    )


def _explained(words: Sequence[str]) -> str | None:
    arguments = hydra_inside.parse_command_line(words)
    try:
        found = explain(hydra_inside.open_loader(conf_folder(), arguments.config_dir), arguments.overrides)
    except (HydraException, OmegaConfBaseException):
        return None
    return None if found is None else str(found)


def _hydras_words(error: Exception) -> str:
    if isinstance(error, SearchPathException):
        return f"{error}. Check --config-dir."
    cause = f"\n{error.__cause__}" if error.__cause__ is not None else ""
    return f"{error}{cause}\nHYDRA_FULL_ERROR=1 shows where this comes from."


def _print(text: str) -> int:
    print(text, file=sys.stderr)
    return 1
