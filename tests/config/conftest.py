"""A composer over the project's own conf folder."""

from __future__ import annotations

import pytest

from prunelab.config.compose import Composer
from prunelab.config.hydra_inside import Loader, open_loader
from prunelab.config.place import conf_folder
from prunelab.launch.command.plugin import register


@pytest.fixture
def loader() -> Loader:
    register()
    return open_loader(conf_folder())


@pytest.fixture
def composer(loader: Loader) -> Composer:
    return Composer(loader)
