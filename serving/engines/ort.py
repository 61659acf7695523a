"""ONNX Runtime in this process."""

from __future__ import annotations

from typing import Literal

import numpy as np

from csr.bundle.format import Bundle
from csr.bundle.runtime import GOLDEN_TOLERANCE, BundleRunner
from csr.errors import BundleError
from serving.engines.checked import CheckedEngine
from serving.errors import NotReadyError

_AT_ONCE = 4  # images on one thread, which larger batches slow down: what it computes no longer fits the cache


class OrtEngine(CheckedEngine):
    """ONNX Runtime in this process: nothing between it and the caller can fail, so it is ready until it is closed.

    Args:
        bundle: a verified bundle.
        threads: intra-op threads of a session.
        device: ``cpu`` or ``cuda``; ``cuda`` fails rather than falling back.

    Raises:
        BundleError: the golden case does not come out as it did at export. An engine that exists has passed it.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, device: Literal["cpu", "cuda"] = "cpu") -> None:
        super().__init__(bundle.manifest)
        self._runner = BundleRunner(bundle, threads, device)
        self._at_once = _AT_ONCE if device == "cpu" and threads == 1 else None
        error = self._runner.golden_error()
        if not error <= GOLDEN_TOLERANCE:  # also when it is NaN
            raise BundleError(
                f"{bundle.path}: the golden case differs by {error:.2e} in a logit, a map or a fit score, above "
                f"{GOLDEN_TOLERANCE:.0e}; "
                "this machine does not compute what was exported"
            )

    def ready(self) -> None:
        if not self._open:
            raise NotReadyError("this engine is closed")

    def close(self) -> None:
        """Refuses calls from now on. The sessions go with the engine, after the last call that runs in them."""
        self._open = False

    def _encode(self, images: np.ndarray, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        step = self._at_once or len(images)
        parts = [
            self._runner.run_encoder(images[start : start + step], outputs) for start in range(0, len(images), step)
        ]
        return (
            parts[0] if len(parts) == 1 else {name: np.concatenate([each[name] for each in parts]) for name in outputs}
        )

    def _reason(self, tensors: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        patches = tensors.pop("patches")
        return self._runner.run_reasoner(patches, outputs, **tensors)
