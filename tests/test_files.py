"""Files: whole or not there, shared as their folder is, named by any text."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from prunelab.errors import StoreError
from prunelab.files import file_name, make_folder, replace_file, replacing, sha256


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def strict_umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    replace_file(path, b"one")
    replace_file(path, b"two", sync=False)
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    assert sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_after_an_error_the_old_file_stays_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_its_place(tmp_path: Path) -> None:
    """A limit on the size of files refuses a write in the middle, as a full disk does."""
    path = tmp_path / "file"
    replace_file(path, b"old")
    program = (
        "import sys; from pathlib import Path; from prunelab.files import replace_file\n"
        "replace_file(Path(sys.argv[1]), bytes(1 << 16))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip
    assert f"StoreError: {path} cannot be written: File too large. Free space in {tmp_path}" in done.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/below/x cannot be written: Not a directory"):
        replace_file(tmp_path / "file" / "below" / "x", b"")


def test_what_is_made_has_the_groups_rights_of_its_folder(tmp_path: Path, strict_umask: None) -> None:
    tmp_path.chmod(0o2770)
    replace_file(tmp_path / "a" / "file", b"")
    assert mode(tmp_path / "a") == 0o2770
    assert mode(tmp_path / "a" / "file") == 0o660


def test_a_file_that_a_library_closes_to_others_has_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") & 0o644 == 0o644


def test_a_private_folder_and_one_of_everybody_share_nothing(tmp_path: Path, strict_umask: None) -> None:
    for folder_mode in (0o700, 0o1777):
        folder = tmp_path / f"{folder_mode:o}"
        folder.mkdir()
        folder.chmod(folder_mode)
        replace_file(folder / "a" / "file", b"")
        assert (mode(folder / "a"), mode(folder / "a" / "file")) == (0o700, 0o600)


def test_folders_are_made_once(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert make_folder(tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    "text", ["a/b", "../../etc/passwd", "50%", "..", "", ".hidden", "-rf", "é" * 300, "x" * 300, "\ud800"]
)
def test_any_text_names_a_file_of_one_folder(tmp_path: Path, text: str) -> None:
    name = file_name(text)
    (tmp_path / f"{name}.json").touch()
    assert (tmp_path / f"{name}.json").parent == tmp_path
    assert "/" not in name
    assert not name.startswith((".", "-"))


def test_names_stay_readable_and_differ() -> None:
    assert file_name("wanda-0.5_c4=s0") == "wanda-0.5_c4=s0"
    texts = ["a/b", "a-b", "a%b", "x" * 300, "x" * 301, "", "..", "."]
    assert len({file_name(text) for text in texts}) == len(texts)
