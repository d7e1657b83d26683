"""The real cluster, once per session, with accounting and without; a login node for each test."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    # tests are imported by path (importmode importlib), so helpers beside them have to be, too
    spec = importlib.util.spec_from_file_location(
        f"slurm_tests_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


site_module = _load("site")


@pytest.fixture(scope="session")
def at() -> ModuleType:
    """The module ``site``: Site, Cluster, until, kill, SLOW, ..."""
    return site_module


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """Two clusters that start when they are first asked for: ``db`` with accounting, ``bare`` without."""
    base = tmp_path_factory.mktemp("clusters")
    found = {
        "db": site_module.Cluster(base / "db", DB="1", PORT=site_module.free_port(18017)),
        "bare": site_module.Cluster(base / "bare", DB="0", PORT=site_module.free_port(19017)),
    }
    started: list = []

    class Lazy(dict):
        def __missing__(self, name: str) -> object:
            self[name] = found[name]
            started.append(found[name])
            found[name].control("start")
            return found[name]

    try:
        yield Lazy()
    finally:
        for cluster in started:
            cluster.control("stop")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the local pool ran the slow method and the others: what every fault has to arrive at."""
    folder = tmp_path_factory.mktemp("base")
    site = site_module.Site(folder, site_module.Cluster(folder))
    for method in ("slow", "magnitude,random"):
        done = site.run(
            f"method={method}", f"sparsity.ratio={'0.4' if method == 'slow' else '0.1,0.2'}", launcher=[]
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(params=["db"])
def cluster(request: pytest.FixtureRequest, clusters: dict) -> Iterator:
    """The cluster, idle before and after a test."""
    found = clusters[request.param]
    yield found
    found.wait_idle()


@pytest.fixture
def site(tmp_path: Path, cluster: object, base: Path) -> object:
    """A login node whose store has what the tests share (tokens, the dense model) and no pruned model."""
    site = site_module.Site(tmp_path, cluster)
    for kind in ("calibrate", "dense"):
        shutil.copytree(base / "home" / "store" / kind, site.store / kind)
    return site


@pytest.fixture(scope="session")
def expected(base: Path) -> dict[str, dict]:
    """Metrics of every pruned model and its evaluation, by key, as the local pool found them."""
    site = site_module.Site(base, site_module.Cluster(base))
    return {
        record["key"]: record["metrics"] for kind in ("prune", "evaluate") for record in site.records(kind)
    }
