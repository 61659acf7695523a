"""A real Triton server for tests: the one that ``make triton`` installs, in EXPLICIT control mode.

It keeps its ports, so it can be killed and started again as the same server.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

TRITON = Path(__file__).parents[4] / ".triton"
READY_SECONDS = 180.0
STOP_SECONDS = 15.0


class TritonError(RuntimeError):
    """The server is not installed, or did not start: one sentence, then the end of its log."""


class TritonServer:
    """A server on a model repository.

    Args:
        repository: in the ``python`` form; this server has no native backend.
        models: loaded at each start; ready means that all of them are.
        log: the file that takes what the server says, anew at each start.

    Attributes:
        http, grpc: where it listens, as tritonclient takes it; free ports, the same at every start.
    """

    def __init__(self, repository: Path, models: Sequence[str], log: Path) -> None:
        if not (TRITON / "installed").is_file():
            raise TritonError("Triton is not installed in .triton/: run `make triton` (100 MB, under a minute)")
        self.repository, self.models, self._log = repository, list(models), log
        self._http_port, self._grpc_port = _free_ports(2)
        self.http, self.grpc = f"127.0.0.1:{self._http_port}", f"127.0.0.1:{self._grpc_port}"
        self._regions = f"test_{uuid.uuid4().hex[:12]}_"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What the server has said since its last start."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Returns when the server is ready.

        Raises:
            TritonError: it ended, or was not ready in time.
        """
        root = TRITON / "server" / "pytriton" / "tritonserver"
        command = [
            str(root / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={root / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._regions}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self.models),
            "--disable-auto-complete-config",  # a configuration that leaves something out is an error, not a guess
            "--http-address=127.0.0.1",
            f"--http-port={self._http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self._grpc_port}",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
        ]
        # The backend's embedded Python takes its packages from the environment of the first python3 on PATH.
        path = os.pathsep.join([str(TRITON / "python" / "bin"), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}
        with self._log.open("wb") as stream:
            # A session of its own: the backend's Python processes are in its group and end with it.
            self._process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._wait_ready(self._process)

    @property
    def pid(self) -> int:
        """Of the server itself; its backends are its children."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """The server and its backends die without a word, as when the machine's memory runs out."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """The server stops answering but keeps its connections."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """After `pause`."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ends the server in good order, if it runs."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.send_signal(how)
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):  # nobody of the group is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
            for region in Path("/dev/shm").glob(f"{self._regions}*"):  # of a Python backend that was killed
                region.unlink(missing_ok=True)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise TritonError(f"tritonserver ended with {process.returncode} before it was ready:\n{self._tail()}")
            if _says_ready(self._http_port):
                return
            time.sleep(0.1)
        raise TritonError(f"tritonserver was not ready within {READY_SECONDS:.0f} s:\n{self._tail()}")

    def _tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.splitlines()[-lines:])


@contextmanager
def triton_server(repository: Path, models: Sequence[str], log: Path) -> Iterator[TritonServer]:
    """A `TritonServer` that runs until the block ends.

    Raises:
        TritonError: the server is not installed, ended, or was not ready in time.
    """
    server = TritonServer(repository, models, log)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _free_ports(count: int) -> list[int]:
    """Free now; another process may take one before the server does, which its log then says."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _says_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)  # knows no proxy, unlike urllib
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
