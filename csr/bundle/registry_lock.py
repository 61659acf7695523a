"""A lock in the registry's own store, for processes on any machines that share it.

MLflow offers no lock, but a registered model's name is unique: who creates ``<model>-lock-<purpose>`` holds it, and
deletes it when done. The entry says who holds it, and while it is held its tag ``alive`` is renewed. One whose holder
fell silent for `SILENCE` seconds, or was a process of this machine that is gone, is set aside by *renaming* it after
its holder: only one process can do that, and a second one that meant the old holder too is refused, since the new name
is taken. What was set aside therefore stays for a day.

A holder that was only asleep finds out by `RegistryLock.check`, to be called before whatever must not happen twice.
Between that and what follows lie milliseconds, which this lock does not cover; `SILENCE` is long against the difference
between two machines' clocks.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from csr.errors import CSRError

SILENCE = 600.0  # seconds
RENEWAL = 30.0
_PAUSE = 0.2
_DAY = 86400.0
_DEAD = "-dead-"
_TAKEN, _GONE = "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"


class LockedError(CSRError):
    """Another process holds the lock, or took it over."""


class LockClient(Protocol):
    """What is asked of ``mlflow.tracking.MlflowClient``."""

    def create_registered_model(self, name: str, tags: dict[str, Any], description: str) -> Any: ...
    def get_registered_model(self, name: str) -> Any: ...
    def set_registered_model_tag(self, name: str, key: str, value: Any) -> None: ...
    def rename_registered_model(self, name: str, new_name: str) -> Any: ...
    def delete_registered_model(self, name: str) -> None: ...
    def search_registered_models(self, filter_string: str) -> Any: ...


class RegistryLock:
    """One lock, as a context manager.

    Args:
        client: MLflow's.
        model: the registered model that is guarded.
        purpose: what is done under the lock, a word.
        wait: seconds to wait for another holder; 0 refuses at once.
        silence: seconds after which a holder that says nothing is taken for dead.
    """

    def __init__(
        self, client: LockClient, model: str, purpose: str, wait: float = 0.0, silence: float = SILENCE
    ) -> None:
        self._client, self._purpose, self._wait, self._silence = client, purpose, wait, silence
        self.name = f"{model}-lock-{purpose}"
        self._holder = uuid.uuid4().hex
        self._done = threading.Event()

    def __enter__(self) -> RegistryLock:
        """Raises:
        LockedError: another process holds it.
        """
        until = time.monotonic() + self._wait
        while not self._taken():
            held = self._held()
            if held is None or self._set_aside(held):
                continue
            if time.monotonic() >= until:
                raise LockedError(
                    f"{held['by']} has been at {self._purpose} since {held['since']}; wait until it is done. If it is "
                    f"dead, its lock ends by itself {self._silence / 60:.0f} minutes after its last sign of life"
                )
            time.sleep(_PAUSE)
        self._done.clear()
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._renewing.join()
        for old in self._client.search_registered_models(f"name LIKE '{self.name}{_DEAD}%'"):
            if time.time() - float(old.tags["alive"]) > _DAY:
                self._client.delete_registered_model(old.name)
        if self._is_mine():
            self._client.delete_registered_model(self.name)

    def check(self) -> None:
        """Raises:
        LockedError: this process was taken for dead and another holds the lock, or held it.
        """
        if not self._is_mine():
            raise LockedError(f"another process took over {self._purpose} while this one was silent; nothing was done")

    def _taken(self) -> bool:
        by = f"{socket.gethostname()}:{os.getpid()}"
        now = time.time()
        tags = {"holder": self._holder, "by": by, "place": _place(), "since": _shown(now), "alive": str(now)}
        try:
            self._client.create_registered_model(
                self.name, tags, f"A lock, no model: {by} is at {self._purpose}. It goes away by itself."
            )
        except Exception as error:
            if getattr(error, "error_code", None) != _TAKEN:
                raise
            return False
        return True

    def _held(self) -> dict[str, str] | None:
        """The tags of who holds it; None if nobody does by now."""
        try:
            return dict(self._client.get_registered_model(self.name).tags)
        except Exception as error:
            if getattr(error, "error_code", None) != _GONE:
                raise
            return None

    def _set_aside(self, held: dict[str, str]) -> bool:
        """Whether the holder was dead and its entry is out of the way now."""
        if time.time() - float(held["alive"]) <= self._silence and not _is_gone(held):
            return False
        aside = f"{self.name}{_DEAD}{held['holder']}"
        try:
            self._client.rename_registered_model(self.name, aside)
        except Exception as error:
            if getattr(error, "error_code", None) not in (_TAKEN, _GONE):
                raise
        return True

    def _is_mine(self) -> bool:
        held = self._held()
        return held is not None and held["holder"] == self._holder

    def _renew(self) -> None:
        while not self._done.wait(min(RENEWAL, self._silence / 3)):
            try:
                if not self._is_mine():
                    return
                self._client.set_registered_model_tag(self.name, "alive", str(time.time()))
            except Exception:  # the registry is away for a moment; `check` is what must not fail silently
                continue


def _place() -> str:
    """Where the numbers of processes mean the same: this machine since it was started, and this container."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{Path('/proc/self/ns/pid').readlink()}"


def _is_gone(held: dict[str, str]) -> bool:
    return held["place"] == _place() and not Path("/proc", held["by"].rpartition(":")[2]).exists()


def _shown(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
