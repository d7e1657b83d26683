"""A fresh loader of the project's own conf folder, for tests that look beside the composer."""

from __future__ import annotations

import pytest

from prunelab.config.hydra_inside import Loader, open_loader
from prunelab.config.place import conf_folder
from prunelab.launch.command.plugin import register


@pytest.fixture
def loader() -> Loader:
    register()
    return open_loader(conf_folder())
