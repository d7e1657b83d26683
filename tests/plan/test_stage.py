"""Names of any kind as names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunelab.files import file_name

ODD = ["a/b", "../../etc/passwd", "..", ".", "", "a%j", "50 %", "x" * 240, "x" * 241, "tab\tnew\nline", "ünï/çødé", "-rf", "a:b",
       "\udce9", "nul\0", "a\\b", " ", "a b", "a/../b", "a//b"]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_one_plain_file(name: str, tmp_path: Path) -> None:
    made = file_name(name)
    path = tmp_path / f"{made}.rank12.log.partial"
    path.write_text("x")
    assert list(tmp_path.rglob("*")) == [path]
    assert not set(made) & set("/\\%:\0\n\t ")
    assert not made.startswith((".", "-"))


def test_other_names_are_other_files() -> None:
    assert len({file_name(name) for name in ODD}) == len(ODD)


def test_plain_names_stay_as_they_are() -> None:
    for name in ("surgeon-0.1-austen-s0", "prune-wanda-0.5-2of4", "worker-0"):
        assert file_name(name) == name
