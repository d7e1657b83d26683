"""A loopback server that speaks the W&B SDK's protocol; it can answer 500, or accept and never answer."""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that were killed say no goodbye."""


class Loopback:
    """Runs, artefacts and blobs in ``held``; ``operations`` in order; ``fault`` is "", "500" or "hang".

    ``refused`` names operations, and "file_stream", that this user may not do.
    """

    def __init__(self, served: Any) -> None:
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.fault = ""
        self.refused: set[str] = set()
        self.requests = 0
        self._released = threading.Event()
        self._lock = threading.Lock()
        server = _Server(("127.0.0.1", 0), self._handler())
        self.server, self.url = server, f"http://127.0.0.1:{server.server_address[1]}"
        self._served = served
        self.forget()
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.heal()
        self.server.shutdown()
        self.server.server_close()

    def forget(self) -> None:
        """Hold nothing, as a new server would."""
        self.held = self._served(self.url)

    def heal(self) -> None:
        """Answer again; requests that hang are dropped, as a connection is that broke meanwhile."""
        self.fault = ""
        self._released.set()
        self._released = threading.Event()

    @property
    def run(self) -> Any:
        """The only run."""
        (run,) = self.held.runs.values()
        return run

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = match.group(1) if match else query[:40]
        self.operations.append(name)
        if name in self.refused:
            return {"data": None, "errors": [{"message": "permission denied"}]}
        answer = self.held.answer(name, variables)
        if answer is None:
            self.unknown.append(name)
            return {"errors": [{"message": f"unknown operation {name}"}]}
        return {"data": answer}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self._body()
                if self._faulty():
                    return None
                if self.path == "/graphql":
                    asked = json.loads(raw)
                    with loopback._lock:
                        answer = loopback.graphql(asked["query"], asked.get("variables") or {})
                    return self._send(200, answer)
                if match := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", self.path):
                    if "file_stream" in loopback.refused:
                        return self._send(403, {"error": "permission denied"})
                    with loopback._lock:
                        loopback.held.run(match[2], match[1]).stream(json.loads(raw))
                    return self._send(200, {"exitcode": None, "limits": {}})
                return self._send(404, {})

            def do_PUT(self) -> None:
                raw = self._body()
                if not self._faulty():
                    loopback.held.blobs[self.path.removeprefix("/blob/")] = raw
                    self._send(200, {})

            def do_GET(self) -> None:
                if not self._faulty():
                    self._send(404, {})

            def _faulty(self) -> bool:
                loopback.requests += 1
                if loopback.fault == "500":
                    self._send(500, {"error": "outage"})
                    return True
                if loopback.fault == "hang":
                    loopback._released.wait()
                    self.close_connection = True
                    return True
                return False

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
