"""A real sweep through ``python -m prunelab``: what the server holds online equals what offline and sync give."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]  # test_sync compares the same on written-down studies
SECRETS = {"MY_SECRET_TOKEN": "zq-tok-7719-qx", "DATABASE_PASSWORD": "pw!kjh-2231"}


def files_with(folder: Path, words: list[str]) -> list[Path]:
    needles = [word.encode() for word in words]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(needle in path.read_bytes() for needle in needles)]


@pytest.mark.parametrize("store", ["shared", "own"])
def test_offline_and_sync_is_online(
    loopback, lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
):
    on, off = tmp_path / "on", tmp_path / "off"
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    lab.sweep(on, "tracking=wandb", "tracking.tags=[lab]")
    online = lab.held(loopback.held, on)
    assert {run["name"] for run in online.values()} == {
        "magnitude-0.3-u-austen-s0",
        "magnitude-0.3-u-layer-austen-s0",
    }
    for run in online.values():
        repaired = "layer" in run["name"]
        models = ["reconstruct"] if repaired else ["prune"]
        made = [item for item in run["made"] if item["type"] != "run_table"]
        assert [item["name"].split("-")[0] for item in made] == models
        (checkpoint,) = made
        (entry,) = [
            checkpoint["files"][name] for name in checkpoint["files"] if name.endswith(".safetensors")
        ]
        assert entry["ref"].startswith("file://HOME/store/")
        assert entry["extra"]["sha256"] in checkpoint["metadata"]["sha256"].values()
        assert entry["size"] in checkpoint["metadata"]["bytes"].values()
        kinds = [item["type"] for item in run["used"]]
        assert (kinds.count("tokens"), kinds.count("dense"), kinds.count("model")) == (3, 1, repaired)
        assert run["tags"][-1] == "lab"
        assert run["end"] == (True, 0)
        assert "plot/blocks" in run["plots"]
    loopback.forget()

    where = [] if store == "own" else [f"paths.store={on / 'store'}"]
    done = lab.sweep(off, "tracking=wandb", "tracking.tags=[lab]", "tracking.mode=offline", *where)
    assert f"send them with: prunelab sync {off / 'studies' / 'lab'}" in done.stdout
    assert loopback.held.runs == {}
    sent = lab.sync(off, WANDB_MODE="offline")  # a machine's default; the command is clear
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "lab: 2 sent" in sent.stdout
    assert lab.held(loopback.held, off if store == "own" else on) == online
    assert loopback.unknown == []

    requests = loopback.requests
    again = lab.sync(off)
    assert (again.returncode, again.stdout) == (0, "lab: 2 sent before, nothing to do\n")
    assert loopback.requests == requests
    key = "0123456789abcdef0123456789abcdef01234567"
    assert files_with(tmp_path, [*SECRETS.values(), key]) == []
