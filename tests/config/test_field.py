"""Fields and bounds read from source."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prunelab.config.field import Field, read_class
from prunelab.errors import ConfigError

SOURCE = """
import a_module_that_does_not_exist
from dataclasses import dataclass
from typing import Annotated, ClassVar

@dataclass(frozen=True)
class Method:
    name: str
    step: Annotated[float | None, "0 < x <= 1"]
    damping: Annotated[float, "x >= 0"]
    kind: Annotated[str, "full | independent"]
    count: Annotated[int, "x >= 1"]
    flag: bool = False
    needs: ClassVar[tuple[str, ...]] = ("input_gram",)
    supports = ("rows_columns",)
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_method.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_method.Method"


def test_reads_without_importing(target: str) -> None:
    source = read_class(target)
    assert list(source.fields) == ["name", "step", "damping", "kind", "count", "flag"]
    assert not source.fields["flag"].required
    assert source.literals["needs"] == ("input_gram",)
    assert source.literals["supports"] == ("rows_columns",)
    assert "own_method" not in sys.modules


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("step", None, None), ("step", 1, 1.0), ("damping", 0, 0.0), ("kind", "full", "full"), ("count", 3, 3),
        ("flag", True, True),
    ],
)  # fmt: skip
def test_accepts(target: str, name: str, value: object, result: object) -> None:
    checked = read_class(target).fields[name].check(f"method.{name}", value)
    assert checked == result
    assert type(checked) is type(result)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", 0.0), ("step", 1.5), ("step", "abc"), ("step", float("nan")), ("damping", -1), ("damping", None),
        ("damping", True), ("kind", "fulll"), ("count", 0), ("count", 1.5), ("flag", 1), ("name", 3),
    ],
)  # fmt: skip
def test_refuses_naming_key_value_and_what_is_allowed(target: str, name: str, value: object) -> None:
    field = read_class(target).fields[name]
    with pytest.raises(ConfigError) as caught:
        field.check(f"method.{name}", value)
    assert f"method.{name}={value!r}" in str(caught.value)
    assert field.allowed in str(caught.value)


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        ("0 <= x < 1", (0, 0.999), (-1e-9, 1)), ("x > 2", (2.1,), (2,)), ("x <= 2", (2,), (2.1,)),
        ("0 < x", (1e-9,), (0,)), ("-1.5 <= x <= 1e3", (-1.5, 1000), (-1.6, 1001)),
    ],
)  # fmt: skip
def test_bounds(bound: str, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    field = Field("x", ("float",), bound, True)
    for value in inside:
        field.check("x", value)
    for value in outside:
        with pytest.raises(ConfigError):
            field.check("x", value)


@pytest.mark.parametrize("wrong", ["no_such_module.Method", "own_method.Methot", "own_method", "", "os;x.Y"])
def test_unknown_class(target: str, wrong: str) -> None:
    del target
    with pytest.raises(ConfigError, match="_target_"):
        read_class(wrong)
