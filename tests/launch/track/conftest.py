"""Small studies to track, and the loopback server of the tests of tracking."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def _load(name: str, path: Path) -> ModuleType:
    # tests are imported by path (importmode importlib), so helpers beside them have to be, too
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


study = _load("track_tests_study", HERE / "study.py")
served = _load("track_tests_served", HERE.parents[1] / "tracking" / "conftest.py")
wandb_env, loopback = served.wandb_env, served.loopback


@pytest.fixture
def lab() -> ModuleType:
    """The module ``study``: sweep, sync, tracked, held, ..."""
    return study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished study that no tracker has seen."""
    home = tmp_path_factory.mktemp("finished")
    study.write_finished(home)
    return home
