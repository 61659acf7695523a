"""A Triton server as engine: the two models that `serving.engines.triton` builds, of one version, by gRPC."""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from csr.bundle.format import COMPARED_OUTPUTS, ENCODER_OUTPUTS, INTERACTION_INPUTS, Bundle
from csr.bundle.runtime import GOLDEN_TOLERANCE, golden_gap
from csr.errors import BundleError, ConfigError
from serving.engines.checked import CheckedEngine
from serving.engines.triton.client import TritonClient
from serving.engines.triton.config import ENCODER, REASONER, bundle_key
from serving.engines.triton.connection import translated
from serving.engines.triton.regions import RegionError
from serving.errors import EngineUnavailableError, NotReadyError, ServingError

TIMEOUT_S = 10.0
_VERIFICATIONS = 3  # in one call, of a server that changes under them
_log = logging.getLogger(__name__)


class TritonEngine(CheckedEngine):
    """Asks one version of a bundle's models on a Triton server.

    A server can be replaced at any time, so whenever it may be another than before (it was gone, lost its shared
    memory or a model) the next call first verifies, as the constructor does, that it serves this bundle and computes
    its golden case. An answer that a change overtook is asked for again. So a server that comes back is used without
    a new engine, within about a second, and one that comes back with another bundle never answers.

    Concurrency: any number of threads. Requests beyond the server's batch are divided and asked one after another.

    Args:
        bundle: a verified bundle; the server must serve the same one.
        url: ``host:port`` of the server's gRPC endpoint.
        version: of the models.
        timeout_s: what one call of the engine may take at most.
        shared_memory: large tensors go through shared memory. ``auto``: if the address is this machine's and the
            server can map it; True: it must; False: never. See `serving.engines.triton.client` for what it gains.

    Raises:
        EngineUnavailableError: nothing answers at ``url``.
        NotReadyError: the server does not hold this version of the models.
        BundleError: it is another bundle's, or the golden case does not come out as it did at export.
        ConfigError: ``shared_memory`` is True and the server cannot map this machine's.
    """

    def __init__(
        self,
        bundle: Bundle,
        url: str,
        version: int,
        timeout_s: float = TIMEOUT_S,
        shared_memory: Literal["auto"] | bool = "auto",
    ) -> None:
        super().__init__(bundle.manifest)
        self.url = url
        self.version = version
        self._digest = bundle.digest
        self._golden = bundle.golden()
        self._timeout_s = timeout_s
        self._max_batch = 1
        self._verified = -1  # the client's count of changes when the server was last verified
        self._verifying = threading.Lock()
        self._client = TritonClient(url, version)
        try:
            self._require_models(self._deadline())
            self._share_memory(shared_memory)
            self._require_verified(self._deadline())
        except BaseException:
            self.close()
            raise

    @property
    def shares_memory(self) -> bool:
        """Whether large tensors go through shared memory."""
        return self._client.shares_memory

    def ready(self) -> None:
        if not self._open:
            raise NotReadyError("this engine is closed")
        try:
            remaining = self._deadline()
            self._require_models(remaining)
            self._require_verified(remaining)
        except (ServingError, BundleError) as error:
            raise NotReadyError(str(error)) from error

    def close(self) -> None:
        """Waits for the calls in flight, at most ``timeout_s``; then the shared memory is gone."""
        self._open = False
        self._client.close(self._timeout_s)

    def _encode(self, images: np.ndarray, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        return self._ask(ENCODER, {"image": images}, outputs)

    def _reason(self, tensors: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        return self._ask(REASONER, tensors, outputs)

    def _ask(self, model: str, tensors: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """An answer of a server that was verified before and has not changed since."""
        remaining = self._deadline()
        for _ in range(_VERIFICATIONS):
            try:
                self._require_verified(remaining)
            except (NotReadyError, BundleError) as error:  # the server came back with other models than it had
                raise EngineUnavailableError(str(error)) from error
            verified = self._verified
            answer = self._batches(model, tensors, outputs, remaining)
            if self._client.changes == verified:
                return answer
        raise self._unstable()

    def _batches(
        self, model: str, tensors: Mapping[str, np.ndarray], outputs: Sequence[str], remaining: Callable[[], float]
    ) -> dict[str, np.ndarray]:
        batch = len(next(iter(tensors.values())))
        parts = []
        for start in range(0, batch, self._max_batch):
            part = {name: tensor[start : start + self._max_batch] for name, tensor in tensors.items()}
            if "absent_weight" in part:  # Triton knows no empty shape: B×1 there
                part["absent_weight"] = part["absent_weight"][:, None]
            count = min(self._max_batch, batch - start)
            shapes = {name: (count, *self._shapes[name]) for name in outputs}
            parts.append(self._client.infer(model, part, shapes, remaining))
        return (
            parts[0] if len(parts) == 1 else {name: np.concatenate([each[name] for each in parts]) for name in outputs}
        )

    def _require_verified(self, remaining: Callable[[], float]) -> None:
        """Verifies the server if it may have changed since it last was; one thread does, the others wait for it."""
        if self._verified == self._client.changes:
            return
        if not self._verifying.acquire(timeout=remaining()):
            raise EngineUnavailableError(f"Triton at {self.url} was not verified in time")
        try:
            for _ in range(_VERIFICATIONS):
                if self._verified == (changes := self._client.changes):
                    return
                self._require_models(remaining)
                self._require_golden(remaining)
                self._verified = changes
            raise self._unstable()
        finally:
            self._verifying.release()

    def _require_models(self, remaining: Callable[[], float]) -> None:
        """Raises:
        EngineUnavailableError, NotReadyError, BundleError: see the constructor.
        """
        api, version, largest = self._client.api, str(self.version), []
        for model in (ENCODER, REASONER):
            with translated(self.url):
                there = api.is_model_ready(model, version, client_timeout=remaining())
                about = api.get_model_config(model, version, client_timeout=remaining()).config if there else None
            if about is None:
                raise NotReadyError(
                    f"Triton at {self.url}: {model} has no version {version} that is ready; build and load it "
                    f"(python -m serving.engines.triton --model-version {version} --load {self.url}) or name "
                    "another version"
                )
            found = about.parameters[bundle_key(self.version)].string_value
            if found != self._digest:
                raise BundleError(
                    f"Triton at {self.url}: version {version} of {model} is bundle {found[:12] or 'unknown'}, "
                    f"not {self._digest[:12]}; name this bundle's version"
                )
            largest.append(about.max_batch_size)
        self._max_batch = min(largest)

    def _require_golden(self, remaining: Callable[[], float]) -> None:
        """Raises:
        BundleError: see the constructor.
        """
        golden = self._golden
        encoded = self._batches(ENCODER, {"image": golden["image"]}, ENCODER_OUTPUTS, remaining)
        tensors = {name: golden[name] for name in INTERACTION_INPUTS} | {"patches": encoded["patches"]}
        error = golden_gap(golden, encoded | self._batches(REASONER, tensors, COMPARED_OUTPUTS, remaining))
        if not error <= GOLDEN_TOLERANCE:  # also when it is NaN
            raise BundleError(
                f"Triton at {self.url}: the golden case differs by {error:.2e} in a logit, a map or a fit score, above "
                f"{GOLDEN_TOLERANCE:.0e}; this server does not compute what was exported"
            )

    def _share_memory(self, wanted: Literal["auto"] | bool) -> None:
        if wanted is False or (wanted == "auto" and not _is_here(self.url)):
            return
        try:
            self._client.share_memory()
        except RegionError as error:
            if wanted is True:
                raise ConfigError(f"Triton at {self.url}: shared memory is not possible: {error}") from error
            _log.info("Triton at %s: requests go without shared memory: %s", self.url, error)

    def _deadline(self) -> Callable[[], float]:
        end = time.monotonic() + self._timeout_s
        return lambda: max(end - time.monotonic(), 0.001)

    def _unstable(self) -> EngineUnavailableError:
        return EngineUnavailableError(f"Triton at {self.url} keeps changing; try again when it is up")


def _is_here(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = url.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or url.startswith("unix:")
