"""A PostgreSQL server of a test's own, from Debian's package, on a free port of the loopback or of a test's network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from serving.deploy.cluster import free_port

START_S = 90.0


class PostgresError(RuntimeError):
    """It is not installed, or does not start."""


class Postgres:
    """A server that can be killed and started again on the same data.

    Args:
        folder: for it. host: that it listens on; who is on its network may ask, too.
        inside: words before its commands, which start them elsewhere.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not programs:
            raise PostgresError("PostgreSQL is not installed: apt-get install postgresql")
        self._bin = programs[-1]
        self._folder, self._host, self._inside = folder, host, inside
        self.port = free_port()
        self.url = f"postgresql+psycopg://csr@{host}:{self.port}/postgres"
        self._run("initdb", "-D", str(folder / "data"), "-U", "csr", "--auth=trust", "-E", "UTF8", "--no-sync")
        with (folder / "data/pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {host}/24 trust\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self._folder / "log").open("ab")
        arguments = ["-D", str(self._folder / "data"), "-p", str(self.port), "-h", self._host]
        command = self._as_postgres("postgres", *arguments, "-c", f"unix_socket_directories={self._folder}")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PostgresError((self._folder / "log").read_text())
            time.sleep(0.1)

    def kill(self) -> None:
        """As if the machine had failed."""
        if self._process is not None:
            # its servers have groups of their own, and would answer until they notice that it is gone
            servers = psutil.Process(self._process.pid).children(recursive=True)
            os.killpg(self._process.pid, signal.SIGKILL)
            for each in servers:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(servers, timeout=10)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        command = [*self._inside, str(self._bin / "pg_isready"), "-h", self._host, "-p", str(self.port), "-q"]
        done = subprocess.run(command)
        return done.returncode == 0

    def _run(self, *command: str) -> None:
        done = subprocess.run(self._as_postgres(*command), capture_output=True, text=True)
        if done.returncode:
            raise PostgresError(done.stderr)

    def _as_postgres(self, program: str, *arguments: str) -> list[str]:
        """It refuses to run as root."""
        own = [str(self._bin / program), *arguments]
        return (
            own
            if os.geteuid()
            else [*self._inside, "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *own]
        )


@contextmanager
def postgres(host: str = "127.0.0.1", inside: Sequence[str] = ()) -> Iterator[Postgres]:
    """A running server, gone when the block ends; see `Postgres`."""
    folder = Path(tempfile.mkdtemp(prefix="csr-postgres-"))  # a test's own folder may be closed to other users
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    server = Postgres(folder, host, inside)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
