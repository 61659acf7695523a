"""The half that all engines share: their inputs are checked before anything runs, so that a wrong tensor gets the
same sentence whatever the engine, and neither crosses a network nor spoils the batch of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from csr.bundle.format import ENCODER_OUTPUTS, INTERACTION_INPUTS, REASONER_OUTPUTS, Manifest
from csr.bundle.runtime import tensor_shapes
from csr.interaction.corrections import Interaction, interaction_tensors
from serving.errors import EngineUnavailableError, InvalidTensorError

_REASONER_INPUTS = ("patches", *INTERACTION_INPUTS)


class CheckedEngine(ABC):
    """Base of the engines; see `serving.engines.protocol.Engine`."""

    def __init__(self, about: Manifest) -> None:
        self._about = about
        self._shapes = tensor_shapes(about)
        self._open = True

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self.run_encoder(images, ["patches"])["patches"]

    def run_encoder(self, images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self._require_open()
        names = _named(outputs, ENCODER_OUTPUTS, "encoder")
        self._check({"image": images}, len(images) if np.ndim(images) else 0)
        return self._encode(images, names)

    def reason(
        self, patches: np.ndarray, interactions: Sequence[Interaction], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        if not interactions:
            raise InvalidTensorError("interactions: there are none; give one for each study")
        about = self._about
        tensors = interaction_tensors(interactions, about.concepts, about.side, about.height, about.width)
        return self.run_reasoner(patches, outputs, **tensors)

    def run_reasoner(
        self, patches: np.ndarray, outputs: Sequence[str] | None = None, **tensors: np.ndarray
    ) -> dict[str, np.ndarray]:
        self._require_open()
        names = _named(outputs, REASONER_OUTPUTS, "reasoner")
        feeds = {"patches": patches, **tensors}
        if odd := set(feeds) ^ set(_REASONER_INPUTS):
            raise InvalidTensorError(f"{sorted(odd)[0]}: the reasoner takes exactly {', '.join(_REASONER_INPUTS)}")
        self._check(feeds, len(patches) if np.ndim(patches) else 0)
        return self._reason(feeds, names)

    def _require_open(self) -> None:
        if not self._open:
            raise EngineUnavailableError("this engine is closed; its model has been replaced or the server is stopping")

    def _check(self, tensors: Mapping[str, np.ndarray], batch: int) -> None:
        if batch < 1:
            raise InvalidTensorError(f"{next(iter(tensors))}: is empty; at least one study is needed")
        for name, tensor in tensors.items():
            kind = np.uint8 if name == "image" else np.float32
            if tensor.dtype != kind:
                raise InvalidTensorError(f"{name}: is {tensor.dtype}, expected {np.dtype(kind)}")
            if tensor.shape != (expected := (batch, *self._shapes[name])):
                raise InvalidTensorError(f"{name}: shape is {_said(tensor.shape)}, expected {_said(expected)}")

    @abstractmethod
    def _encode(self, images: np.ndarray, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        """`run_encoder` of a checked array."""

    @abstractmethod
    def _reason(self, tensors: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        """`run_reasoner` of checked arrays."""


def _named(outputs: Sequence[str] | None, known: tuple[str, ...], graph: str) -> tuple[str, ...]:
    names = known if outputs is None else tuple(dict.fromkeys(outputs))
    if not names or (unknown := set(names) - set(known)):
        what = f"{sorted(unknown)[0]!r} is not one" if names else "none is named"
        raise InvalidTensorError(f"outputs: {what}; the {graph} gives {', '.join(known)}")
    return names


def _said(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
