"""A loopback server that speaks the W&B SDK's protocol, a `.wandb` reader, and a clean environment."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "0123456789abcdef0123456789abcdef01234567"


class Loopback:
    """What arrived: ``runs`` (variables of UpsertBucket), history rows, summary, blobs, operations."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.files: dict[str, list[str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.complete = False
        self.exitcode: int | None = None
        self.preempting = False
        self.broken = False
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        self.server, self.url = server, f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def run(self) -> dict[str, Any]:
        """All variables of the run's upserts, later ones on top."""
        merged: dict[str, Any] = {}
        for variables in self.runs:
            merged |= {key: value for key, value in variables.items() if value is not None}
        return merged

    @property
    def config(self) -> dict[str, Any]:
        return {k: v["value"] for k, v in json.loads(self.run["config"]).items() if k != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.files["wandb-summary.json"][-1])

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = match.group(1) if match else query[:40]
        self.operations.append(name)
        answer = self._answer(name, variables)
        if answer is None:
            self.unknown.append(name)
            return {"errors": [{"message": f"unknown operation {name}"}]}
        return {"data": answer}

    def _answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        if name in ("Viewer", "GetViewer", "GetDefaultEntity"):
            teams = {"edges": [{"node": {"name": "lab"}}]}
            viewer = {"id": "u", "name": "lab", "entity": "lab", "username": "lab", "email": "a@b.c"}
            return {
                "viewer": viewer | {"admin": False, "flags": "{}", "apiKeys": {"edges": []}, "teams": teams}
            }
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        project = {"id": "p", "name": "prunelab", "entity": {"id": "e", "name": "lab"}}
        if name == "RunResumeStatus":
            return {"model": project | {"bucket": None}}
        if name == "UpsertBucket":
            self.runs.append(variables)
            bucket = {"id": "b", "name": variables.get("name"), "displayName": variables.get("displayName")}
            bucket |= {"description": "", "config": "{}", "sweepName": None, "historyLineCount": 0}
            return {
                "upsertBucket": {"bucket": bucket | {"project": project}, "inserted": len(self.runs) == 1}
            }
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/blob/{f}"} for f in variables.get("files", [])]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return self._artifact_answer(name, variables)

    def _artifact_answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":
            made = {"id": "a", "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if name == "CreateArtifactManifest":
            file = {"id": "f", "uploadUrl": f"{self.url}/blob/manifest", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if name == "CreateArtifactFiles":
            given = (variables.get("input") or variables).get("artifactFiles", [])
            more = {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": "a"}}
            paths = [(file["name"], f"{self.url}/blob/artifact/{file['name']}") for file in given]
            edges = [{"node": more | {"storagePath": path, "uploadUrl": url}} for path, url in paths]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if name == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        return None

    def stream(self, body: dict[str, Any]) -> None:
        for file, part in (body.get("files") or {}).items():
            self.files.setdefault(file, []).extend(part["content"])
        self.complete = self.complete or bool(body.get("complete"))
        self.preempting = self.preempting or bool(body.get("preempting"))
        if body.get("exitcode") is not None:
            self.exitcode = body["exitcode"]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self._body()
                if loopback.broken:
                    return self._send(500, {"error": "outage"})
                if self.path == "/graphql":
                    asked = json.loads(raw)
                    return self._send(200, loopback.graphql(asked["query"], asked.get("variables") or {}))
                if self.path.endswith("/file_stream"):
                    loopback.stream(json.loads(raw))
                    return self._send(200, {"exitcode": None, "limits": {}})
                return self._send(404, {})

            def do_PUT(self) -> None:
                loopback.blobs[self.path.removeprefix("/blob/")] = self._body()
                self._send(200, {})

            def do_GET(self) -> None:
                self._send(404, {})

            def _body(self) -> bytes:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    return gzip.decompress(body)
                return body

            def _send(self, code: int, answer: dict[str, Any]) -> None:
                text = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


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

    server = Loopback()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()
    yield server
    wandb.teardown()
    server.close()


@pytest.fixture
def read_wandb():
    """Reader of `.wandb` files: path -> protobuf records; a torn tail ends the file."""
    return _records


def _records(path: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, whole, at = [], b"", 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for a chunk's header: padding
            at += 32768 - at % 32768
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + 7])
        body = data[at + 7 : at + 7 + length]
        if kind == 0 or len(body) < length:
            break
        assert zlib.crc32(bytes([kind]) + body) == checksum
        whole = body if kind in (1, 2) else whole + body
        if kind in (1, 4):
            found.append(Record.FromString(whole))
        at += 7 + length
    return found
