import socket
import time
from pathlib import Path

import pytest

from prunelab.errors import ConfigError
from prunelab.tracking.wandb import probe
from prunelab.tracking.wandb.probe import decide, has_key, reachable


def test_without_a_key_offline_at_once(wandb_env: Path):
    start = time.monotonic()
    decision = decide({"mode": None})
    assert (decision.mode, decision.base_url) == ("offline", "https://api.wandb.ai")
    assert "WANDB_API_KEY" in decision.reason
    assert time.monotonic() - start < 2


def test_closed_port_is_offline(wandb_env: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with socket.socket() as held:  # bound and never listening: connections are refused
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        decision = decide({"mode": "online", "base_url": url + "/"})
    assert (decision.mode, decision.base_url) == ("offline", url)
    assert url in decision.reason


def test_hanging_name_lookup_is_bounded(wandb_env: Path, monkeypatch: pytest.MonkeyPatch):
    def hang(*args, **kwargs):
        time.sleep(1.5)
        raise OSError("no such host")

    monkeypatch.setattr(probe.urllib.request, "urlopen", hang)
    start = time.monotonic()
    assert not reachable("https://nowhere.invalid", timeout_s=0.2)
    assert time.monotonic() - start < 1


def test_listening_port_with_key_is_online(loopback):
    assert decide({}).mode == "online"


def test_a_proxy_is_asked_in_place_of_the_server(loopback, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", loopback.url)
    monkeypatch.setenv("no_proxy", "")
    assert reachable("http://203.0.113.1:81", timeout_s=1)


@pytest.mark.parametrize(("asked", "mode"), [("offline", "offline"), ("disabled", "disabled")])
def test_environment_mode_counts_where_config_is_null(wandb_env, monkeypatch, asked, mode):
    monkeypatch.setenv("WANDB_MODE", asked)
    assert decide({"mode": None}).mode == mode


def test_unknown_mode_names_the_nearest(wandb_env: Path):
    with pytest.raises(ConfigError, match=r"tracking\.mode='onlin'.*Did you mean 'online'"):
        decide({"mode": "onlin"})


def test_netrc_counts_as_a_key(wandb_env: Path, tmp_path: Path):
    assert not has_key("https://api.wandb.ai")
    netrc = tmp_path / "home" / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password x\n")
    netrc.chmod(0o600)
    assert has_key("https://api.wandb.ai")
    assert not has_key("https://other.example")
    netrc.write_text("machine machine login\nnonsense")
    assert not has_key("https://api.wandb.ai")
