"""Hub corpora: single files at a pinned revision, from the cache or the network, decided within seconds.

Only data files (parquet, gzipped JSON lines) are fetched, never a dataset script, so nothing from the hub is
executed.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from prunelab.errors import DataError

PROBE_SECONDS = 3.0


def _reachable(url: str) -> bool:
    """Tell whether a TCP connection to ``url``'s host (or the proxy for it) opens within PROBE_SECONDS."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    opened = []

    def connect() -> None:
        try:
            with socket.create_connection(address, timeout=PROBE_SECONDS):
                opened.append(True)
        except OSError:
            pass

    # a thread, because name resolution ignores socket timeouts
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(opened)


def _unavailable(name: str, repo: str, revision: str, filename: str, reason: str) -> DataError:
    from huggingface_hub import constants

    return DataError(
        f"corpus {name!r} is not available: {filename} of {repo} at revision {revision} is not in the local "
        "cache "
        f"({constants.HF_HUB_CACHE}) and {reason}. Fetch it once on a machine with network: "
        f"`hf download {repo} {filename} --repo-type dataset --revision {revision}`, with HF_HOME set to a "
        "folder "
        "that the jobs see. The embedded corpora (austen, kjv, jargon, pydocs) need no network."
    )


def fetch(name: str, repo: str, revision: str, filename: str) -> tuple[Path, str]:
    """Return (path of one dataset file in the hub's cache, commit it belongs to).

    The cache is asked first, so a cached file needs no network. ``HF_HUB_OFFLINE`` is honoured. Raises
    DataError saying how to fetch the file when it cannot be had.
    """
    from httpx import HTTPError
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    kind: dict[str, Any] = {
        "repo_id": repo,
        "filename": filename,
        "repo_type": "dataset",
        "revision": revision,
    }
    try:
        path = hf_hub_download(**kind, local_files_only=True)
    except HFValidationError as error:
        raise DataError(f"corpus {name!r}: {repo!r} is not a hub dataset id: {error}") from error
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise _unavailable(name, repo, revision, filename, "HF_HUB_OFFLINE is set") from None
        if not _reachable(constants.ENDPOINT):
            reason = f"{constants.ENDPOINT} cannot be reached"
            raise _unavailable(name, repo, revision, filename, reason) from None
        try:
            path = hf_hub_download(**kind, etag_timeout=PROBE_SECONDS)
        except (HTTPError, OSError, ValueError, RuntimeError) as error:  # all that the hub's client raises
            reason = f"the hub answered {type(error).__name__}: {error}"
            raise _unavailable(name, repo, revision, filename, reason) from error
    return Path(path), _commit(Path(path), filename)


def _commit(path: Path, filename: str) -> str:
    """Return the commit out of .../snapshots/<commit>/<filename>."""
    return path.parts[-1 - len(Path(filename).parts)]
