"""A real Triton server for tests: the one that ``make triton`` installs, on free ports, in EXPLICIT control mode."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TRITON = Path(__file__).parents[2] / ".triton"
READY_SECONDS = 90.0
STOP_SECONDS = 15.0


class TritonError(RuntimeError):
    """The server is not installed, or did not start: one sentence, then the end of its log."""


@dataclass(frozen=True)
class TritonAddress:
    """Where a running server listens, as tritonclient takes it."""

    http: str
    grpc: str
    started_in: float  # seconds


@contextmanager
def triton_server(repository: Path, models: Sequence[str], log: Path) -> Iterator[TritonAddress]:
    """Runs a server on a model repository until the block ends.

    Args:
        repository: in the ``python`` form; this server has no native backend.
        models: loaded at the start; ready means that all of them are.
        log: the file that takes what the server says.

    Raises:
        TritonError: the server is not installed, ended, or was not ready in time.
    """
    if not (TRITON / "installed").is_file():
        raise TritonError("Triton is not installed in .triton/: run `make triton` (100 MB, under a minute)")
    root = TRITON / "server" / "pytriton" / "tritonserver"
    http_port, grpc_port = _free_ports(2)
    command = [
        str(root / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={root / 'backends'}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        "--disable-auto-complete-config",  # a configuration that leaves something out is an error, not a guess
        "--http-address=127.0.0.1",
        f"--http-port={http_port}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc_port}",
        "--allow-metrics=false",
        "--exit-timeout-secs=5",
    ]
    # The backend's embedded Python takes its packages from the environment of the first python3 on PATH.
    path = os.pathsep.join([str(TRITON / "python" / "bin"), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    start = time.monotonic()
    with log.open("wb") as stream:
        # A session of its own: the backend's Python processes are in its group and end with it.
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_ready(process, http_port, log, start + READY_SECONDS)
        yield TritonAddress(f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", time.monotonic() - start)
    finally:
        _stop(process)


def _free_ports(count: int) -> list[int]:
    """Free now; another process may take one before the server does, which its log then says."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path, deadline: float) -> None:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TritonError(f"tritonserver ended with {process.returncode} before it was ready:\n{_tail(log)}")
        if _says_ready(port):
            return
        time.sleep(0.1)
    raise TritonError(f"tritonserver was not ready within {READY_SECONDS:.0f} s:\n{_tail(log)}")


def _says_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)  # knows no proxy, unlike urllib
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):  # nobody of the group is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)


def _tail(log: Path, lines: int = 60) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
