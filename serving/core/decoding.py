"""Decoding in processes of its own: strangers' bytes are parsed where they can harm nothing but their own request.

A file of a few kilobytes can hold a decoder for minutes or fill the memory, and no check before parsing finds every
such file. So each worker process has a limit of memory and each file a deadline; a worker that misses it is killed and
replaced, and the file is refused with a sentence. Workers see no secret but the salt of pseudonyms, and what comes
back from them is JSON and pixels, never a pickle. `python -m serving.deploy.decoder` is the worker.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from csr.data.images import Placement, pixel_digest
from serving.core.fair_slots import FairSlots
from serving.core.messages import packed, unpacked
from serving.errors import (
    BurnedInAnnotationError,
    DecoderError,
    IncompleteDicomError,
    ServingError,
    UnreadableImageError,
    UnsupportedImageError,
)
from serving.store.studies import StoredStudy

WORKER = (sys.executable, "-m", "serving.deploy.decoder")
_REFUSALS = {
    each.__name__: each
    for each in (BurnedInAnnotationError, IncompleteDicomError, UnreadableImageError, UnsupportedImageError)
}
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE")
PATIENCE = 4
_START_S = 60.0
_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True)
class DecodingLimits:
    """What one file may cost.

    Args:
        workers: processes, each decoding one file at a time; one caller has all but one of them at the most, so that
            nobody waits for another's dear files.
        seconds: of a processor's time, so that a busy machine refuses nothing that an idle one reads. A worker that
            does nothing is given up after `PATIENCE` times as many by the clock.
        memory_mb: that a worker may allocate (RLIMIT_DATA). An image at the limit of `csr.data.limits.MAX_PIXELS`
            needs about 1,200.
    """

    workers: int = 3
    seconds: float = 10.0
    memory_mb: int = 2048


class DecodingPool:
    """Decodes files in worker processes. Thread-safe.

    Args:
        limits: of one file.
        command: starts a worker.
    """

    def __init__(self, limits: DecodingLimits | None = None, command: Sequence[str] = WORKER) -> None:
        self.limits = limits or DecodingLimits()
        self._command = command
        self._workers: dict[int, _Worker] = {}  # started when they are first needed
        self._slots = FairSlots(range(self.limits.workers))
        self._guard = threading.Lock()
        self._closed = False

    def decode(
        self,
        data: bytes,
        name: str,
        channels: int,
        side: int,
        salt: bytes,
        caller: str,
        display: str | None = None,
        frame: int | None = None,
    ) -> StoredStudy:
        """One file as a study of channels×side×side pixels.

        Args:
            salt: of pseudonyms; see `serving.dicom.deidentify`.
            caller: in whose turn.
            display, frame: see `csr.data.images.read_image`.

        Raises:
            UnsupportedImageError, UnreadableImageError, BurnedInAnnotationError, IncompleteDicomError: the file is
                refused; also when it takes too long or too much memory.
            DecoderError: no worker could be started.
        """
        about = {"name": name, "channels": channels, "side": side, "display": display, "frame": frame}
        task = json.dumps(about | {"salt": salt.hex()}).encode()
        slot = self._slots.take(caller)
        try:
            worker = self._worker(slot)
            try:
                return study_of(*worker.ask(task, data, PATIENCE * self.limits.seconds, channels * side * side))
            except TimeoutError:
                reason = f"takes longer than {self.limits.seconds:g} seconds to decode, the limit"
            except MemoryError:
                reason = f"needs more than {self.limits.memory_mb:,} MB of memory to decode, the limit"
            except (EOFError, OSError):
                reason = "ends the decoder: it is damaged"
            self._drop(slot)
            raise UnreadableImageError(f"{name}: {reason}")
        finally:
            self._slots.give(slot)

    def processes(self) -> list[int]:
        """The ids of those that run."""
        with self._guard:
            return [worker.pid for worker in self._workers.values()]

    def close(self) -> None:
        """Ends the workers; what they are at is refused."""
        with self._guard:
            self._closed = True
            slots = list(self._workers)
        for slot in slots:
            self._drop(slot)

    def _worker(self, slot: int) -> _Worker:
        with self._guard:
            if self._closed:
                raise DecoderError("the server is stopping")
            if slot not in self._workers:
                self._workers[slot] = _Worker(self._command, self.limits)
            return self._workers[slot]

    def _drop(self, slot: int) -> None:
        with self._guard:
            worker = self._workers.pop(slot, None)
        if worker is not None:
            worker.kill()


class _Worker:
    """One process and the line to it."""

    def __init__(self, command: Sequence[str], limits: DecodingLimits) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(limits.memory_mb), str(limits.seconds)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        self.pid = self._process.pid
        self._line = Connection(ours.detach())
        self._started = False

    def ask(self, task: bytes, data: bytes, seconds: float, most: int) -> tuple[dict[str, Any], bytes]:
        """The answer's JSON and its pixels, ``most`` bytes of them at the most.

        Raises:
            TimeoutError: none within so many seconds, or within the processor's time that a file may take.
            MemoryError: the worker's limit.
            EOFError, OSError: it is gone.
            DecoderError: it never came up.
        """
        if not self._started:
            self._start()
        self._line.send_bytes(packed(task, data))
        if not self._line.poll(seconds):
            raise TimeoutError
        try:
            about, pixels = unpacked(self._line.recv_bytes(_ANSWER_BYTES + most))
        except EOFError:
            if self._process.wait() == -signal.SIGPROF:
                raise TimeoutError from None
            raise
        answer = json.loads(about)
        if answer.get("error") == "MemoryError":
            raise MemoryError
        return answer, pixels

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._line.close()

    def _start(self) -> None:
        try:
            if not self._line.poll(_START_S):
                raise TimeoutError
            self._line.recv_bytes()
        except (EOFError, OSError) as error:
            code = self._process.poll()
            raise DecoderError(f"the decoder does not start ({error or 'it ended'}, exit status {code})") from None
        self._started = True


def study_of(answer: dict[str, Any], pixels: bytes) -> StoredStudy:
    """What a worker answered, as a study.

    Raises:
        ServingError: the file was refused.
    """
    if (error := answer.get("error")) is not None:
        refusal: type[ServingError] = _REFUSALS.get(error, UnreadableImageError)
        raise refusal(answer["message"])
    canvas = np.frombuffer(pixels, np.uint8).reshape(answer["shape"])
    return StoredStudy(
        pixel_digest(canvas), canvas, Placement(**answer["placement"]), answer["source"], answer["coloured"]
    )


def _environment() -> dict[str, str]:
    """No secret of the server's, one thread each, and the same modules."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
