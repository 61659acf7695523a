"""Requests to a Triton server: arrays in, arrays out, large ones through shared memory where that works.

Measured on one machine with two cores, Triton 2.51, Python backend, one request at a time, medians in ms (message /
shared memory); registering a new region costs 0.5 to 1.5 ms once, and then it is pooled:

    in + out of a request   1 kB + 1 kB   37 kB + 295 kB   602 kB + 1.6 MB   1.6 MB + 4 MB   3.1 MB + 3.1 MB
    batch of 1              0.76 / 0.72   1.24 / 1.05      3.5 / 1.2         8.8 / 4.3       9.4 / 4.2
    batch of 8              0.71 / 0.66   5.8 / 1.7        61 / 15           123 / 24        187 / 27

The phantom's bundle (192² pixels, 24×24 cells, 10×5 prototypes) in the same way: a batch of 8 reasons in 28 / 6.9 ms,
one study in 1.7 / 1.4 (without ``similarity_maps`` 1.55 / 1.1; ONNX Runtime in process 0.19), and encodes in 12 / 8.

So tensors from `SHARED_FROM` bytes on go through shared memory, and smaller ones in the message, as fast as there.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.engines.triton.connection import NOT_FOUND, UNAVAILABLE, as_serving_error, connect, is_overloaded
from serving.engines.triton.regions import ForgottenError, Region, RegionError, Regions
from serving.errors import EngineUnavailableError

SHARED_FROM = 1 << 16  # bytes of a tensor
_ALIGNMENT = 64
_ATTEMPTS = 2  # the second for a server that was started anew and so lost the regions of the first
_log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


class TritonClient:
    """One connection to one version of the models of a server.

    Concurrency: any number of threads; gRPC carries their requests over one connection, each in a region of its own.

    Args:
        url: ``host:port`` of the gRPC endpoint.
        version: of every model asked.

    Attributes:
        changes: how often the server may have become another since the start: it was gone, had lost its shared memory
            or no longer held a model. Whoever verified it must do so again when the number has grown.
    """

    def __init__(self, url: str, version: int) -> None:
        self.url = url
        self.changes = 0
        self.api = connect(url)
        self._version = str(version)
        self._regions: Regions | None = None
        self._calls = 0
        self._closed = False
        self._state = threading.Condition()

    @property
    def shares_memory(self) -> bool:
        """Whether large tensors go through shared memory."""
        return self._regions is not None

    def share_memory(self) -> None:
        """Large tensors go through shared memory from now on.

        Raises:
            RegionError: the server cannot map this machine's shared memory.
        """
        self._regions = Regions(self.api)

    def infer(
        self, model: str, tensors: Mapping[str, np.ndarray], outputs: Shapes, remaining: Callable[[], float]
    ) -> dict[str, np.ndarray]:
        """One request.

        Args:
            model: which one.
            tensors: its inputs.
            outputs: the float32 outputs wanted and their shapes, batch axis included.
            remaining: seconds left of the caller's time.

        Raises:
            EngineUnavailableError: no answer within that time, or none to be had.
            ServingError: the server answers with another error.
        """
        with self._call():
            try:
                return self._infer(model, tensors, outputs, remaining)
            except InferenceServerException as error:
                if error.status() in (UNAVAILABLE, NOT_FOUND) and not is_overloaded(error):
                    self._note_change()
                raise as_serving_error(error, self.url) from error

    def close(self, timeout_s: float) -> None:
        """Waits for the calls in flight, takes the shared memory back and disconnects. Again: does nothing."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._state.wait_for(lambda: not self._calls, timeout_s)
        if self._regions is not None:
            self._regions.close()
        self.api.close()

    def _infer(
        self, model: str, tensors: Mapping[str, np.ndarray], outputs: Shapes, remaining: Callable[[], float]
    ) -> dict[str, np.ndarray]:
        places, size = _places(tensors, outputs)
        if self._regions is None or not places:
            return self._send(model, tensors, outputs, remaining())
        for _ in range(_ATTEMPTS):
            try:
                with self._regions.lend(size, remaining()) as region:
                    return self._send(model, tensors, outputs, remaining(), region, places)
            except ForgottenError:
                self._note_change()
            except RegionError as error:
                _log.warning("Triton at %s: a request goes without shared memory: %s", self.url, error)
                break
        return self._send(model, tensors, outputs, remaining())

    def _send(
        self,
        model: str,
        tensors: Mapping[str, np.ndarray],
        outputs: Shapes,
        timeout_s: float,
        region: Region | None = None,
        places: Mapping[str, int] | None = None,
    ) -> dict[str, np.ndarray]:
        inputs, wanted = [], []
        for name, tensor in tensors.items():
            given = InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
            if region and places and name in places:
                region.write(tensor, places[name])
                given.set_shared_memory(region.name, tensor.nbytes, places[name])
            else:
                given.set_data_from_numpy(tensor)
            inputs.append(given)
        for name, shape in outputs.items():
            wanted.append(InferRequestedOutput(name))
            if region and places and name in places:
                wanted[-1].set_shared_memory(region.name, _bytes(shape), places[name])
        answer = self.api.infer(model, inputs, self._version, wanted, client_timeout=timeout_s)
        return {
            # A message's arrays are views of its bytes, read-only: copied, so that answers are alike.
            name: region.read(shape, places[name])
            if region and places and name in places
            else answer.as_numpy(name).copy()
            for name, shape in outputs.items()
        }

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._state:
            if self._closed:
                raise EngineUnavailableError(f"the connection to Triton at {self.url} is closed")
            self._calls += 1
        try:
            yield
        finally:
            with self._state:
                self._calls -= 1
                self._state.notify_all()

    def _note_change(self) -> None:
        with self._state:
            self.changes += 1


def _places(tensors: Mapping[str, np.ndarray], outputs: Shapes) -> tuple[dict[str, int], int]:
    """Where in a region each large tensor of a request begins, and how many bytes that takes."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    sizes |= {name: _bytes(shape) for name, shape in outputs.items()}
    places, end = {}, 0
    for name, size in sizes.items():
        if size >= SHARED_FROM:
            places[name] = end
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places, end


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)
