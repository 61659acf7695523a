"""System shared memory between this process and a Triton server on the same machine.

A region is lent to one request at a time, so requests at once never share bytes. A region whose request failed may
still be written to by the server: it is removed here and never lent again, and the server is asked to let go of it a
while later (Triton before 2.50 crashed if the request was still running then). Python's resource tracker removes the
regions of a process that was killed; those of a closed pool are gone at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from serving.engines.triton.connection import NOT_FOUND, is_away

PREFIX = "csr_engine"  # a region's name: this, the process that made it, and something that no other has
_SMALLEST = 1 << 16
_KEPT_BYTES = 128 << 20  # idle regions beyond it are given back
_CONTROL_S = 2.0  # what registering and the like may take
_DOUBT_S = 30.0
_FOLDER = Path("/dev/shm")
_log = logging.getLogger(__name__)


class RegionError(Exception):
    """A region cannot be had: no shared memory left, or the server does not see this machine's."""


class ForgottenError(Exception):
    """The server has lost a region that it knew: it was started anew. The next region lent is one that it knows."""


class Region:
    """One piece of shared memory that the server has mapped too.

    Attributes:
        name: here and in the server. size: bytes.
        since: when the server had mapped it.

    Raises:
        RegionError: there is not so much left.
    """

    def __init__(self, size: int) -> None:
        self.since = 0.0
        self.name = f"{PREFIX}_{os.getpid()}_{uuid.uuid4().hex}"
        self.size = size
        try:
            self._handle = shm.create_shared_memory_region(self.name, self.name, size, create_only=True)
        except shm.SharedMemoryException as error:
            raise RegionError(f"{size} bytes of shared memory: {error.__cause__ or error}") from error
        try:
            # Memory that is only promised ends the process with SIGBUS when it is touched and there is none.
            descriptor = os.open(_FOLDER / self.name, os.O_RDWR)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.destroy()
            raise RegionError(f"{size} bytes in {_FOLDER}: {error.strerror}; give this machine more of it") from error

    def write(self, array: np.ndarray, offset: int) -> None:
        shm.set_shared_memory_region(self._handle, [array], offset)

    def read(self, shape: tuple[int, ...], offset: int) -> np.ndarray:
        """A copy of float32 values: the region is somebody else's in a moment."""
        return shm.get_contents_as_numpy(self._handle, np.float32, shape, offset).copy()

    def destroy(self) -> None:
        """The name is gone at once, the memory when the server lets go of it too."""
        shm.destroy_shared_memory_region(self._handle)


class Regions:
    """A pool of regions that the server knows.

    Args:
        client: of the server that maps them.

    Raises:
        RegionError: the server cannot map this machine's shared memory.
    """

    def __init__(self, client: InferenceServerClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._doubtful: dict[str, float] = {}  # removed here, but a late request may use them in the server; until when
        try:
            with self.lend(_SMALLEST, _CONTROL_S):
                pass
        except InferenceServerException as error:
            raise RegionError(error.message()) from error

    @contextmanager
    def lend(self, size: int, timeout_s: float) -> Iterator[Region]:
        """A region of at least ``size`` bytes for the block. If the block raises, the region is not lent again.

        Raises:
            RegionError: see `Region` and `Regions`.
            ForgottenError: the block's request failed because the server was started anew.
            InferenceServerException: the server does not answer.
        """
        region = self._take(size) or self._make(size, timeout_s)
        try:
            yield region
        except BaseException as error:
            region.destroy()
            if isinstance(error, InferenceServerException) and error.status() == NOT_FOUND and not self._knows(region):
                self._forget(region.since)
                raise ForgottenError(error.message()) from error
            with self._lock:
                self._doubtful[region.name] = time.monotonic() + _DOUBT_S
            raise
        with self._lock:
            if keep := sum(each.size for each in self._free) + region.size <= _KEPT_BYTES:
                self._free.append(region)
        if not keep:
            region.destroy()
            self._unregister(region.name)
        self._reclaim()

    def close(self) -> None:
        """Takes all regions back from the server, if it answers, and removes them. Nothing may be lent any more."""
        with self._lock:
            idle, self._free = self._free, []
            names = [region.name for region in idle] + list(self._doubtful)
            self._doubtful.clear()
        for region in idle:
            region.destroy()
        all(self._unregister(name) for name in names)  # until one finds the server gone

    def _take(self, size: int) -> Region | None:
        """The smallest idle region that is large enough."""
        with self._lock:
            fitting = [each for each in self._free if each.size >= size]
            if not fitting:
                return None
            region = min(fitting, key=lambda each: each.size)
            self._free.remove(region)
            return region

    def _make(self, size: int, timeout_s: float) -> Region:
        region = Region(max(_SMALLEST, 1 << (size - 1).bit_length()))
        try:
            self._client.register_system_shared_memory(
                region.name, f"/{region.name}", region.size, client_timeout=timeout_s
            )
        except InferenceServerException as error:
            region.destroy()
            if is_away(error):
                raise
            raise RegionError(f"the server cannot map this machine's shared memory: {error.message()}") from error
        region.since = time.monotonic()
        return region

    def _reclaim(self) -> None:
        """Takes one region of a request that failed long ago back from the server, which has just answered."""
        with self._lock:
            due = [name for name, until in self._doubtful.items() if until < time.monotonic()]
            if not due:
                return
            del self._doubtful[due[0]]
        self._unregister(due[0])

    def _knows(self, region: Region) -> bool:
        """Whether the server has the region mapped: one that was started anew has none."""
        try:
            self._client.get_system_shared_memory_status(region.name, client_timeout=_CONTROL_S)
        except InferenceServerException as error:
            return error.status() != NOT_FOUND
        return True

    def _forget(self, since: float) -> None:
        """Drops the idle regions that are no younger than one that the server has lost: it has lost them too."""
        with self._lock:
            gone = [each for each in self._free if each.since <= since]
            self._free = [each for each in self._free if each.since > since]
        for region in gone:
            region.destroy()

    def _unregister(self, name: str) -> bool:
        """Takes a region back from the server; False if it does not answer."""
        reason = ""
        for attempt in range(5):  # it counts a request as using its regions for a moment longer than until its answer
            time.sleep(0.02 * attempt)
            try:
                self._client.unregister_system_shared_memory(name, client_timeout=_CONTROL_S)
                return True
            except InferenceServerException as error:
                if is_away(error):
                    return False
                reason = error.message()
        _log.warning("Triton keeps shared memory region %s until it ends: %s", name, reason)
        return True
