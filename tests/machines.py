"""Machines of a test's own: Linux namespaces, each with mounts, a network, processes and a name of its own.

They share the kernel, the system's programs and Python's packages, as machines of one image do, and nothing else:
`/tmp`, `/dev/shm` and the home folder are each one's own. `Machine.kill` ends all that runs on one at once, as when the
power fails. A switch joins them; what runs on it (a database, an object store) is on nobody's machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SWITCH = "10.77.0.1"
_OWN = ("--mount", "--net", "--uts", "--ipc")
_SETUP = """
set -e
mount --make-rprivate /
printf '%s\\n' "$HOSTS" > "$FOLDER/hosts"
mount --bind "$FOLDER/hosts" /etc/hosts
for kept in $KEPT; do mkdir -p "$FOLDER${kept#/tmp}"; mount --bind "$kept" "$FOLDER${kept#/tmp}"; done
mount --rbind "$FOLDER" /tmp
for hidden in $HIDDEN; do mount -t tmpfs tmpfs "$hidden"; done
mount -t tmpfs tmpfs /dev/shm
hostname "$NAME"
ip link set lo up
echo ready
exec sleep infinity
"""


class Machine:
    """A machine that is on.

    Args:
        name: of it. address: on the switch.
        folder: that it has as ``/tmp``; the test sees it, no other machine does.
        hidden: folders that it does not have.
        hosts: lines of its ``/etc/hosts``.
    """

    def __init__(self, name: str, address: str, folder: Path, hidden: Sequence[Path], hosts: str) -> None:
        self.name, self.address, self.folder = name, address, folder
        (folder / "home").mkdir(parents=True)
        given = {
            "FOLDER": str(folder),
            "NAME": name,
            "HOSTS": hosts,
            "KEPT": " ".join(str(each) for each in (ROOT, Path(sys.prefix)) if each.is_relative_to("/tmp")),
            "HIDDEN": " ".join(str(each) for each in hidden),
            "PATH": os.environ["PATH"],
        }
        command = ["unshare", *_OWN, "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _SETUP]
        self.process = subprocess.Popen(command, env=given, stdout=subprocess.PIPE)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n", (
            f"{name} does not start"
        )

    def start(self, *command: str, log: str = "log", **environment: str) -> subprocess.Popen[bytes]:
        """Starts a program there, in ``/tmp``; what it says goes into a file of `folder`."""
        pid = self.process.pid
        enter = ["nsenter", "-t", str(pid), *_OWN, f"--pid=/proc/{pid}/ns/pid_for_children", "--wdns=/tmp", "--"]
        own = {"HOME": "/tmp/home", "TMPDIR": "/tmp", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with (self.folder / log).open("ab") as stream:
            return subprocess.Popen([*enter, *command], env=own | environment, stdout=stream, stderr=subprocess.STDOUT)

    def run(self, *command: str, log: str = "log", seconds: float = 400, **environment: str) -> None:
        """The same, and waits until it has ended well."""
        status = self.start(*command, log=log, **environment).wait(seconds)
        assert status == 0, f"{self.name}: {' '.join(command)} ended with {status}:\n{self.said(log)}"

    def said(self, log: str = "log") -> str:
        return (self.folder / log).read_text(errors="replace")

    def kill(self) -> None:
        """Everything on it ends at once, and so does its line."""
        self.process.kill()
        self.process.wait(20)


class Switch:
    """Makes machines that reach one another, and starts programs that all of them reach at `SWITCH`.

    Args:
        folder: for the machines' folders.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._machines = folder, dict[str, Machine]()
        self._programs: list[subprocess.Popen[bytes]] = []
        lines = f"ip link set lo up; ip link add br0 type bridge; ip addr add {SWITCH}/24 dev br0; ip link set br0 up"
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-ec", f"{lines}; echo ready; exec sleep infinity"], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == b"ready\n", "no switch"

    def machine(self, name: str, hidden: Sequence[Path] = ()) -> Machine:
        """Turns a machine on."""
        number = len(self._machines) + 2
        address = f"10.77.0.{number}"
        made = Machine(name, address, self._folder / name, hidden, f"127.0.0.1 localhost\n{address} {name}")
        self._machines[name] = made
        there, here = str(made.process.pid), str(self._process.pid)
        _ip("link", "add", f"v{number}", "netns", here, "type", "veth", "peer", "name", "eth0", "netns", there)
        subprocess.run(
            ["nsenter", "-t", here, "--net", "ip", "link", "set", f"v{number}", "master", "br0", "up"], check=True
        )
        lines = f"ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default via {SWITCH}"
        subprocess.run(["nsenter", "-t", there, "--net", "sh", "-ec", lines], check=True)
        return made

    @property
    def inside(self) -> list[str]:
        """Words before a command that start it on the switch."""
        return ["nsenter", "-t", str(self._process.pid), "--net", "--"]

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Starts a program on the switch; what it says goes into ``switch.log``."""
        with (self._folder / "switch.log").open("ab") as log:
            started = subprocess.Popen([*self.inside, *command], stdout=log, stderr=log)
        self._programs.append(started)
        return started

    def close(self) -> None:
        for each in self._machines.values():
            each.kill()
        for process in (*self._programs, self._process):
            process.kill()
            process.wait(20)


@contextmanager
def switch(folder: Path) -> Iterator[Switch]:
    """A switch, off with all its machines when the block ends. The test is left out where the kernel forbids it."""
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing, which the tests of two machines need: apt-get install {package}")
    probe = ["unshare", *_OWN, "--pid", "--fork", "--mount-proc", "ip", "link", "add", "br0", "type", "bridge"]
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this system does not let us make namespaces (they need root): {done.stderr.strip()}")
    made = Switch(folder)
    try:
        yield made
    finally:
        made.close()


def wait_for(condition: Callable[[], object], seconds: float, why: Callable[[], str]) -> float:
    """Returns after how many seconds it came true; ``why`` explains that it did not."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:.0f} s: {why()}"
        time.sleep(0.1)
    return time.monotonic() - started


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
