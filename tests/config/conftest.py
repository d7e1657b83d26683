"""A composer over the project's own conf folder."""

from __future__ import annotations

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path

from prunelab.config.compose import Composer
from prunelab.config.place import conf_folder
from prunelab.launch.command.plugin import register


@pytest.fixture
def loader() -> ConfigLoaderImpl:
    register()
    return ConfigLoaderImpl(create_automatic_config_search_path(None, None, str(conf_folder())))


@pytest.fixture
def composer(loader: ConfigLoaderImpl) -> Composer:
    return Composer(loader)
