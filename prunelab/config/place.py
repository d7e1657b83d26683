"""Where the YAML files are, inside the wheel or beside the package in a checkout, and where results go by default."""

from __future__ import annotations

import os
from pathlib import Path

from prunelab.errors import ConfigError


def conf_folder() -> Path:
    """Return the folder that holds ``config.yaml``: ``<package>/conf`` of a wheel, else ``<package>/../conf``."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError("conf", str(package / "conf"), "a folder with config.yaml", "Reinstall prunelab.")


def settle_home() -> Path:
    """Return where stores and studies are by default, and make it what PRUNELAB_HOME says from here on.

    Set to nothing it counts as not set, as with a script's variable that has no value; ``~`` is the home folder.
    """
    home = Path(os.environ.get("PRUNELAB_HOME") or "outputs").expanduser()
    os.environ["PRUNELAB_HOME"] = str(home)
    return home
