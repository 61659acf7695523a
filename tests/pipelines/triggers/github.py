"""What stands in for GitHub, whose `POST /repos/…/dispatches` is the one call that no test can make."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "a-token"
PATH = "/repos/hospital/csr/dispatches"


class FakeGithub(ThreadingHTTPServer):
    """Answers as GitHub does, or with what `statuses` has next.

    Attributes:
        told: what it took. asked: how often it was asked.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[dict[str, Any]] = []
        self.asked = 0
        self.statuses: list[tuple[int, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def wait_told(self, count: int, within_s: float = 120.0) -> list[dict[str, Any]]:
        deadline = time.monotonic() + within_s
        while len(self.told) < count:
            assert time.monotonic() < deadline, f"told {self.told}, asked {self.asked} times"
            time.sleep(0.02)
        return self.told


class _Handler(BaseHTTPRequestHandler):
    server: FakeGithub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        status, headers = 204, {}
        if self.server.statuses:
            status, headers = self.server.statuses.pop(0)
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 401
        elif self.path != PATH:
            status = 404
        if status == 204:
            self.server.told.append(json.loads(body))
        answer = b"" if status == 204 else b'{"message": "Bad credentials"}'
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def fake_github() -> Iterator[FakeGithub]:
    server = FakeGithub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
