"""A loopback server that speaks the W&B SDK's protocol, a `.wandb` reader, and a clean environment."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

KEY = "0123456789abcdef0123456789abcdef01234567"


def _load(name: str) -> ModuleType:
    # tests are imported by path (importmode importlib), so helpers beside them have to be, too
    spec = importlib.util.spec_from_file_location(
        f"tracking_tests_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Served = _load("served").Served
Loopback = _load("loopback").Loopback


@pytest.fixture
def wandb_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No key, no server, nothing outside ``tmp_path``; returns the folder for the run."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name, value in {"SILENT": "true", "CONSOLE": "off", "X_DISABLE_STATS": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return tmp_path / "trial"


@pytest.fixture
def loopback(wandb_env: Path, monkeypatch: pytest.MonkeyPatch):
    """A live server with its URL and a key in the environment."""
    import wandb

    server = Loopback(Served)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()
    yield server
    server.heal()
    wandb.teardown()
    server.close()


@pytest.fixture
def read_wandb():
    """Reader of `.wandb` files: path -> protobuf records; a torn tail ends the file."""
    return _records


def _records(path: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    from prunelab.tracking.wandb.file import payloads

    return [Record.FromString(payload) for payload in payloads(path.read_bytes())]
