"""The engine: the two computations of a bundle, behind one protocol. The data plane knows nothing of what runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from csr.bundle import Bundle
from csr.errors import BundleError
from csr.interaction import Interaction
from csr.runtime import GOLDEN_TOLERANCE, BundleRunner


class Engine(Protocol):
    """Runs a bundle's graphs. Implementations are thread-safe: the data plane calls from many threads at once."""

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 B×C×S×S → patches float32 B×D'×h×w."""

    def reason(
        self, patches: np.ndarray, interactions: Sequence[Interaction], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Patches and one interaction each (boxes in pixels of the canvas) → `csr.bundle.REASONER_OUTPUTS`."""

    def close(self) -> None:
        """Gives back what it holds."""

    def ready(self) -> None:
        """Raises:
        NotReadyError: it cannot answer now.
        """


class OrtEngine:
    """ONNX Runtime in this process.

    Args:
        bundle: a verified bundle.
        threads: intra-op threads of a session.
        device: ``cpu`` or ``cuda``; ``cuda`` fails rather than falling back.

    Raises:
        BundleError: the golden case does not come out as it did at export. An engine that exists has passed it.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, device: Literal["cpu", "cuda"] = "cpu") -> None:
        self._runner = BundleRunner(bundle, threads, device)
        error = self._runner.golden_error()
        if not error <= GOLDEN_TOLERANCE:  # also when it is NaN
            raise BundleError(
                f"{bundle.path}: the golden case differs by {error:.2e} in a logit, above {GOLDEN_TOLERANCE:.0e}; "
                "this machine does not compute what was exported"
            )

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self._runner.encode(images)

    def reason(
        self, patches: np.ndarray, interactions: Sequence[Interaction], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        found = self._runner.reason(patches, interactions)
        return found if outputs is None else {name: found[name] for name in outputs}

    def close(self) -> None:
        pass

    def ready(self) -> None:
        pass
