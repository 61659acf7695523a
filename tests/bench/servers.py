"""The servers that are compared, each in a process of its own, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import yaml

from serving.deploy.cluster import free_port

START_S = 120.0
_KINDS = (
    (b"serving.deploy.decoder", "decoders"),
    (b"ray::ServeReplica", "the replica"),
    (b"ray::ServeController", "Ray Serve's controller"),
    (b"ray::HAProxy", "Ray Serve's proxies"),
    (b"ray::ProxyActor", "Ray Serve's proxies"),
    (b"haproxy", "HAProxy"),
)
ECHO = """
import sys, uvicorn
size = int(sys.argv[2])
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    head = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b" " * size})
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""


@dataclass(frozen=True)
class Serving:
    """A running server of ours."""

    url: str
    grpc: str
    key: str
    process: subprocess.Popen[bytes]

    def replicas(self) -> list[int]:
        """Process ids of its replicas."""
        return [pid for pid, title in self.processes() if title.startswith(b"ray::ServeReplica:csr:reader")]

    def processes(self) -> list[tuple[int, bytes]]:
        """It and everything that it started, by id and command line."""
        return family(self.process.pid)


@contextmanager
def ray_serve(bundle: Path, folder: Path, count: int = 1, **sections: dict[str, Any]) -> Iterator[Serving]:
    """Our server by ``python -m serving.deploy.app``; its limits are out of the way of one client that asks all the
    time.

    Args:
        bundle: to serve.
        folder: in which it runs; one that it ran in before has its store and keys.
        count: of its replicas.
        sections: of the configuration, instead of or beside what is said here.
    """
    port, grpc = free_port(), free_port()
    config: dict[str, dict[str, Any]] = {
        "model": {"bundle": str(bundle.resolve())},
        "http": {"port": port},
        "grpc": {"port": grpc},
        "replicas": {"least": count, "most": count, "cpus": 0.5, "ongoing": 64, "queued": 256},
        "access": {"rates": {"requests_per_minute": 10_000_000, "concurrent": 256}},
        "telemetry": {"log_level": "WARNING"},
    }
    config = config | {name: config.get(name, {}) | section for name, section in sections.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serving.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serving.deploy.app", "--config", "serving.yaml"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while b"ready in" not in (folder / "log").read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.2)
        key = (folder / ".state/serving/admin.key").read_text().strip()
        yield Serving(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc}", key, process)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@contextmanager
def echo(size: int) -> Iterator[str]:
    """A bare uvicorn that reads a body and answers with ``size`` bytes."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", ECHO, str(port), str(size)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                httpx.get(url, trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def resident_mb(pid: int) -> float:
    """What a process holds in memory now, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def family(ancestor: int) -> list[tuple[int, bytes]]:
    """A process and its descendants, by id and command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if _descends(int(folder.name), ancestor):
            found.append((int(folder.name), title))
    return found


def kind_of(title: bytes) -> str:
    """What a process of a server is, by its command line."""
    return next((name for part, name in _KINDS if part in title), "the rest of Ray")


def processor_s(pids: Iterable[int]) -> float:
    """Seconds of processor time that processes have used so far, all threads, in the system and out of it."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):  # it has ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False
