"""Which process works on a run, so that a later one can tell whether it is still there.

A process is named ``host:pid:start``: its number alone may be another's by now. Of another machine's processes nothing
is known.
"""

from __future__ import annotations

import socket
from pathlib import Path

import psutil


def own_process() -> str:
    """This process."""
    return _name(psutil.Process())


def command() -> str:
    """What a person started: the ``dvc`` above this process or, where there is none, the process that called it."""
    parents = psutil.Process().parents()
    dvc = next((each for each in parents if _is_dvc(each)), None)
    return _name(dvc or (parents[0] if parents else psutil.Process()))


def is_here(name: str) -> bool:
    """Whether a process is one of this machine's, alive or not."""
    return name.partition(":")[0] == socket.gethostname()


def is_alive(name: str) -> bool:
    """Whether a process of this machine still runs."""
    host, _, rest = name.partition(":")
    pid, _, start = rest.partition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        begun = f"{psutil.Process(int(pid)).create_time():.2f}"
    except psutil.NoSuchProcess:
        return False
    return not start or begun == start


def _name(process: psutil.Process) -> str:
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in process.cmdline()[:3])  # dvc …, python dvc …, python -m dvc …
    except psutil.Error:  # another user's, or just gone
        return False
