"""The code behind an option is part of what it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prunelab.config.build import build
from prunelab.config.code import SOURCE, source_digest, with_source
from prunelab.errors import ConfigError

HELPER = "def scale(x):\n    return {0} * x\n"
BASE = "class Base:\n    needs = ()\n"
METHOD = """
import json
from dataclasses import dataclass

import numpy
from lab_base import Base
from prunelab.methods.magnitude import Magnitude


@dataclass(frozen=True)
class Method(Base, Magnitude):
    name: str
    revision: int
    step: float | None

    def costs(self, site):
        from .helper import scale
        return scale(site.W)
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody's, ``lab_code``, beside the module ``lab_base``."""
    (tmp_path / "lab_code").mkdir()
    (tmp_path / "lab_code" / "__init__.py").touch()
    (tmp_path / "lab_code" / "helper.py").write_text(HELPER.format(1))
    (tmp_path / "lab_code" / "method.py").write_text(METHOD)
    (tmp_path / "lab_code" / "other.py").write_text("x = 1\n")
    (tmp_path / "lab_base.py").write_text(BASE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_classes_of_the_package_are_told_by_their_names() -> None:
    option = {"_target_": "prunelab.methods.magnitude.Magnitude", "name": "magnitude"}
    assert with_source(option) == option
    assert with_source({"name": "uniform"}) == {"name": "uniform"}


@pytest.mark.parametrize(
    ("file", "text", "counts"),
    [
        ("lab_code/method.py", METHOD + "\n", True), ("lab_code/helper.py", HELPER.format(2), True),
        ("lab_code/__init__.py", "y = 2\n", True), ("lab_base.py", BASE + "    x = 1\n", True),
        ("lab_code/other.py", "x = 2\n", False),
    ],
)  # fmt: skip
def test_what_a_class_from_elsewhere_runs_counts(lab: Path, file: str, text: str, counts: bool) -> None:
    before = source_digest("lab_code.method.Method")
    assert before is not None
    (lab / file).write_text(text)
    assert (source_digest("lab_code.method.Method") != before) == counts
    assert "lab_code.method" not in sys.modules


def test_the_digest_does_not_know_where_it_is(lab: Path, tmp_path_factory: pytest.TempPathFactory,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    before = source_digest("lab_code.method.Method")
    place = tmp_path_factory.mktemp("elsewhere")
    lab.rename(place / "moved")
    monkeypatch.syspath_prepend(place / "moved")
    assert source_digest("lab_code.method.Method") == before


def test_a_job_refuses_source_that_was_edited_after_planning(lab: Path) -> None:
    option = with_source({"_target_": "lab_code.other.Thing", "name": "x"})
    assert SOURCE in option
    (lab / "lab_code" / "other.py").write_text("class Thing:\n    pass\n")
    with pytest.raises(ConfigError, match="edited since") as caught:
        build(option, "method")
    assert "method._target_='lab_code.other.Thing'" in str(caught.value)
