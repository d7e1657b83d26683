"""Where the YAML files are: inside the wheel, or beside the package in a checkout."""

from __future__ import annotations

from pathlib import Path

from prunelab.errors import ConfigError


def conf_folder() -> Path:
    """Return the folder that holds ``config.yaml``: ``<package>/conf`` of a wheel, else ``<package>/../conf``."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError("conf", str(package / "conf"), "a folder with config.yaml", "Reinstall prunelab.")
