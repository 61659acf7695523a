"""A server in a process of its own, which a test can kill: ``python -m tests.serving.interfaces.served_process``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from serving.access.roles import Role
from tests.serving.conftest import make_service

ROOT = Path(__file__).parents[3]
READY_SECONDS = 120.0


class ServedProcess:
    """Args:
    bundle: what it serves.
    folder: of its store, which outlives it.
    """

    def __init__(self, bundle: Path, folder: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", __name__, str(bundle), str(folder), str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(self._command, cwd=ROOT, env=environment, start_new_session=True)
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)

    def kill(self) -> None:
        """As a power cut does it: nothing is finished, nothing is closed."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def key_for(bundle: Path, folder: Path, name: str, role: Role = Role.READER) -> str:
    """A key in the store of a server that does not run yet."""
    service = make_service(bundle, folder)
    try:
        return service.keys.create(name, role)[1]
    finally:
        service.close()


def main() -> None:
    import uvicorn

    from serving.interfaces.rest.app import create_server

    bundle, folder, port = sys.argv[1:]
    service = make_service(Path(bundle), Path(folder))
    uvicorn.run(create_server(service), port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
