"""A composer over the project's own conf folder, kept for a module since it remembers what it composed."""

from __future__ import annotations

import pytest

from prunelab.config.compose import Composer
from prunelab.config.hydra_inside import open_loader
from prunelab.config.place import conf_folder


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(open_loader(conf_folder()))
