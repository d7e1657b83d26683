"""Online or offline? Decided within two seconds and without importing wandb.

``wandb.init`` needs 102 s to notice a closed port (0.31.0), so one plain request is tried first. Whether a key
is *present* is all that is asked of it; its text stays where it is.
"""

from __future__ import annotations

import http.client
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prunelab.config.schema import Tracking
from prunelab.errors import ConfigError, nearest

DEFAULT_BASE_URL = "https://api.wandb.ai"
PROBE_S = 2.0
MODES = ("online", "offline", "disabled")


@dataclass(frozen=True)
class Decision:
    """``mode`` is online, offline or disabled; ``reason`` says why in one clause."""

    mode: str
    base_url: str
    reason: str


def decide(config: Mapping[str, Any]) -> Decision:
    """The mode for ``conf/tracking/wandb.yaml``'s values: as asked, but online only where that can work.

    Raises:
        ConfigError: ``mode`` is none of online, offline, disabled, null.
    """
    base_url = str(config.get("base_url") or os.environ.get("WANDB_BASE_URL") or DEFAULT_BASE_URL).rstrip("/")
    asked = _asked(config.get("mode"))
    if asked in ("offline", "dryrun"):
        return Decision("offline", base_url, "offline was asked for")
    if asked == "disabled":
        return Decision("disabled", base_url, "tracking is disabled")
    if asked not in (None, "online", "run", "shared"):
        raise ConfigError("tracking.mode", asked, "null | " + " | ".join(MODES), nearest(str(asked), MODES))
    if not has_key(base_url):
        return Decision("offline", base_url, "no API key: set WANDB_API_KEY or run `wandb login`")
    if not reachable(base_url):
        return Decision("offline", base_url, f"{base_url} did not answer within {PROBE_S:g} s")
    return Decision("online", base_url, "server answers, key present")


def is_wanted(tracking: Tracking) -> bool:
    """Whether trials with these values are to be tracked at all."""
    return tracking.name != "none" and _asked(tracking.mode) != "disabled"


def _asked(mode: str | None) -> str | None:
    return mode or os.environ.get("WANDB_MODE") or None


def has_key(base_url: str) -> bool:
    """Whether WANDB_API_KEY is set or the netrc file names the server's host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if urlsplit(base_url).hostname in netrc.netrc(path).hosts:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def reachable(base_url: str, timeout_s: float = PROBE_S) -> bool:
    """Whether the server, or the proxy on the way to it, answers a request within ``timeout_s``, and not with 5xx.

    An open port is not enough: a server that accepts and never answers would hold up ``wandb.init``.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{base_url}/healthz", timeout=timeout_s).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code >= 500:
                return
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # which certificates count is the SDK's business
                return
        except (OSError, http.client.HTTPException, ValueError):
            return
        answered.set()

    # in a thread: the timeout bounds neither the name look-up nor the number of addresses
    thread = threading.Thread(target=ask, daemon=True, name="prunelab-probe")
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()
