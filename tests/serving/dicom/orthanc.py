"""A real Orthanc with its DICOMweb plugin for tests: an own process on a free port, its files in a temporary folder."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
READY_SECONDS = 120.0
STOP_SECONDS = 15.0
_USER = "csr"


class OrthancError(RuntimeError):
    """It is not installed, or did not start: one sentence, then the end of its log."""


@dataclass(frozen=True)
class OrthancAddress:
    """Where it listens, and the header that it lets in."""

    url: str
    authorization: str


@contextmanager
def orthanc_server(folder: Path) -> Iterator[OrthancAddress]:
    """Runs an empty archive until the block ends.

    Args:
        folder: for its configuration, database, images and log.

    Raises:
        OrthancError: it is not installed, ended, or was not ready in time.
    """
    binary = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None or not PLUGIN.exists():
        raise OrthancError(
            "Orthanc is not installed: apt-get install -y --no-install-recommends orthanc orthanc-dicomweb"
        )
    port, password = _free_port(), secrets.token_hex(16)
    authorization = "Basic " + base64.b64encode(f"{_USER}:{password}".encode()).decode()
    config = {
        "Name": "csr-test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {_USER: password},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    file, log = folder / "orthanc.json", folder / "orthanc.log"
    file.write_text(json.dumps(config))
    with log.open("wb") as stream:
        process = subprocess.Popen([binary, str(file)], stdout=stream, stderr=subprocess.STDOUT, cwd=folder)
    try:
        _wait_ready(process, port, authorization, log)
        yield OrthancAddress(f"http://127.0.0.1:{port}/dicom-web", authorization)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def _free_port() -> int:
    """Free now; another process may take it before Orthanc does, which the log then says."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait_ready(process: subprocess.Popen[bytes], port: int, authorization: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise OrthancError(f"Orthanc ended with {process.returncode} before it was ready:\n{_tail(log)}")
        if _says_ready(port, authorization):
            return
        time.sleep(0.1)
    raise OrthancError(f"Orthanc was not ready within {READY_SECONDS:.0f} s:\n{_tail(log)}")


def _says_ready(port: int, authorization: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/dicom-web/studies?limit=1", headers={"Authorization": authorization})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path, lines: int = 60) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
