"""What an engine is: the two computations of a bundle, and whether they can be had now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from csr.interaction.corrections import Interaction


class Engine(Protocol):
    """Runs a bundle's graphs. Implementations are thread-safe: the data plane calls from many threads at once.

    Every computation raises:
        InvalidTensorError: a tensor is not what the graphs take.
        EngineUnavailableError: the engine is closed, or what it asks does not answer in time.
    """

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 B×C×S×S → patches float32 B×D'×h×w."""

    def run_encoder(self, images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """uint8 B×C×S×S → `csr.bundle.format.ENCODER_OUTPUTS`, or those of them that are named."""

    def reason(
        self, patches: np.ndarray, interactions: Sequence[Interaction], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Patches and one interaction each → `csr.bundle.format.REASONER_OUTPUTS`, or those of them that are named.

        Args:
            patches: float32 B×D'×h×w.
            interactions: B of them, boxes in pixels of the canvas.
            outputs: leave out ``similarity_maps``, by far the largest, where nobody looks at single prototypes.

        Raises:
            csr.interaction.corrections.InteractionError: a box outside the image, an unknown concept, or what
                contradicts itself.
        """

    def run_reasoner(
        self, patches: np.ndarray, outputs: Sequence[str] | None = None, **tensors: np.ndarray
    ) -> dict[str, np.ndarray]:
        """`reason` on ready tensors: `csr.bundle.format.INTERACTION_INPUTS`."""

    def ready(self) -> None:
        """Returns if the engine would answer now.

        Raises:
            NotReadyError: why it would not.
        """

    def close(self) -> None:
        """Gives back what the engine holds, after the calls in flight. Closing again does nothing."""
