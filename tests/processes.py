"""Real servers for tests: a process that answers, and the reading API by HTTP."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import uvicorn

from serving.deploy.cluster import free_port
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server


@contextmanager
def running(*command: str, answers: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers at an address before the block starts, and is gone when it ends."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | environment, cwd=log.parent)
    try:
        deadline = time.monotonic() + 300
        while not _answers(answers):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, verify=False).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def served(service: Service) -> Iterator[str]:
    """The reading API by HTTP."""
    config = uvicorn.Config(create_server(service), "127.0.0.1", free_port(), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join()
