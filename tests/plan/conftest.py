"""A composer over the project's own conf folder, kept for a module since it remembers what it composed."""

from __future__ import annotations

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path

from prunelab.config.compose import Composer
from prunelab.config.place import conf_folder


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(ConfigLoaderImpl(create_automatic_config_search_path(None, None, str(conf_folder()))))
