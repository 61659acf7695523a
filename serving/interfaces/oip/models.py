"""The models that the Open Inference Protocol offers, and how the versions of a bundle answer for them.

``csr_encoder`` and ``csr_reasoner`` are the two graphs with the tensors of `serving.engines.triton.config`; ``csr`` is
one after the other in one request, for clients that do not want to carry patches. Every tensor has a batch axis in
front. What a reader says are four of them (`csr.interaction.corrections.interaction_tensors` makes them of boxes and
names):

- ``importance`` h×w: 1 in the cells of focus boxes, 0 in those of ignore boxes, α outside focus boxes, 1 without any;
- ``answers`` K: 1 for a confirmed concept, −1 for a rejected one, else 0;
- ``places`` K×h×w: 1 in the cells of a concept's finding boxes, else 0; the concept must be confirmed too;
- ``absent_weight``: 1, or 0 where rejected scores become 0 instead of those of an image without the concept.

Whoever sends an image also gets ``fit_scores``, one for each of `csr.bundle.profile.PARTS`: where one is above 1 the
image is unlike the training images, and what else is said of it should not be believed.

A client that encodes and reasons in two requests must name the version in both: patches of one bundle mean nothing to
another's reasoner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from csr.bundle.format import INTERACTION_INPUTS, REASONER_OUTPUTS, Manifest
from csr.bundle.runtime import tensor_shapes
from serving.engines.triton.config import ENCODER, ENSEMBLE, MAX_BATCH, REASONER
from serving.errors import InvalidInferenceError, UnknownModelError

SERVER_NAME, SERVER_VERSION = "csr", "1"
NAMES = (ENSEMBLE, ENCODER, REASONER)
DATATYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
HEADER_BYTES = 1 << 20  # the JSON around binary tensors; a few hundred bytes are usual
_GRAPH = "onnxruntime_onnx"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model takes or gives; ``shape`` begins with -1, the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """What a version of a model takes and gives.

    Args:
        name: the model.
        version: which version this describes.
        versions: all that can be asked for.
        platform: as Triton calls it.
        inputs, outputs: its tensors.
    """

    name: str
    version: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class InferenceModels(Protocol):
    """Models that can be asked by name and version, as they are when a request begins.

    A request asks one of these from beginning to end, so whatever is rolled out while its body arrives changes neither
    what it is compared with nor what answers it. Implementations are thread-safe.
    """

    def spec(self, name: str, version: str | None = None) -> ModelSpec:
        """A model's description; None is the default version.

        Raises:
            UnknownModelError: no such model or version.
        """

    def infer(
        self, name: str, version: str | None, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> tuple[str, dict[str, np.ndarray]]:
        """Runs a model on inputs that agree with its description (`serving.interfaces.oip.tensors.decode`).

        Returns:
            The version that answered, and the outputs asked for.

        Raises:
            UnknownModelError: see `spec`.
            InvalidInferenceError: an output is not finite.
        """


class InferenceServer(Protocol):
    """What the adapters of the protocol serve. Implementations are thread-safe."""

    def inference(self) -> InferenceModels:
        """The models for one request, at once.

        Raises:
            NotReadyError: nothing is served yet, and why.
        """

    def check_ready(self) -> None:
        """Asks what answers depend on; this may take seconds.

        Raises:
            ServingError: it could not answer now (503), and why.
        """


class TensorEngine(Protocol):
    """Runs a bundle's graphs on ready tensors, from many threads at once (as `csr.bundle.runtime.BundleRunner`
    does)."""

    def run_encoder(self, images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """uint8 B×C×S×S → `csr.bundle.format.ENCODER_OUTPUTS`, or those of them that are named."""

    def run_reasoner(
        self, patches: np.ndarray, outputs: Sequence[str] | None = None, **tensors: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Patches and the `INTERACTION_INPUTS` → `REASONER_OUTPUTS`, or those of them that are named."""


class ServedBundle(Protocol):
    """One version: a bundle and what runs its graphs, for as long as somebody holds this."""

    @property
    def digest(self) -> str:
        """The bundle's."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""

    @property
    def engine(self) -> TensorEngine:
        """Runs it."""


@dataclass(frozen=True)
class ServedVersions:
    """The versions that answer; ``default`` is one of them."""

    bundles: Mapping[str, ServedBundle]
    default: str


class BundleModels:
    """The three models over the versions that are served."""

    def __init__(self, served: ServedVersions) -> None:
        self._served = served

    def spec(self, name: str, version: str | None = None) -> ModelSpec:
        chosen, bundle = self._bundle(name, version)
        return model_specs(bundle.manifest, chosen, tuple(self._served.bundles))[name]

    def infer(
        self, name: str, version: str | None, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> tuple[str, dict[str, np.ndarray]]:
        chosen, bundle = self._bundle(name, version)
        values = _run(bundle.engine, name, inputs, outputs)
        for output in outputs:
            if not np.isfinite(values[output]).all():
                raise InvalidInferenceError(f"{output}: is not finite; the inputs are too large for 32-bit floats")
        return chosen, {output: values[output] for output in outputs}

    def _bundle(self, name: str, version: str | None) -> tuple[str, ServedBundle]:
        if name not in NAMES:
            raise UnknownModelError(f"model {name[:100]!r}: is unknown; this server has {', '.join(NAMES)}")
        chosen = self._served.default if version is None else version
        if chosen not in self._served.bundles:
            known = ", ".join(self._served.bundles)
            raise UnknownModelError(f"model {name!r}, version {chosen[:100]!r}: is not served; served are {known}")
        return chosen, self._served.bundles[chosen]


def model_specs(about: Manifest, version: str = "1", versions: tuple[str, ...] = ("1",)) -> dict[str, ModelSpec]:
    """The three models of a bundle by name."""
    shapes = tensor_shapes(about)

    def specs(*names: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, "UINT8" if name == "image" else "FP32", (-1, *(shapes[name] or (1,)))) for name in names
        )

    image, patches, said = specs("image"), specs("patches"), specs(*INTERACTION_INPUTS)
    fits, answer = specs("fit_scores"), specs(*REASONER_OUTPUTS)
    return {
        ENSEMBLE: ModelSpec(ENSEMBLE, version, versions, "ensemble", image + said, fits + answer),
        ENCODER: ModelSpec(ENCODER, version, versions, _GRAPH, image, patches + fits),
        REASONER: ModelSpec(REASONER, version, versions, _GRAPH, patches + said, answer),
    }


def max_request_bytes(about: Manifest) -> int:
    """The longest inference request over HTTP that a bundle needs, for whoever limits bodies: see `request_bytes`."""
    return max(request_bytes(spec) for spec in model_specs(about).values())


def request_bytes(spec: ModelSpec) -> int:
    """The longest request that a model takes: a full batch in binary form and `HEADER_BYTES` of JSON.

    Tensors as JSON are several times longer, so fewer images fit into such a request.
    """
    one = sum(math.prod(each.shape[1:]) * DATATYPES[each.datatype].itemsize for each in spec.inputs)
    return MAX_BATCH * one + HEADER_BYTES


def _run(
    engine: TensorEngine, name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    encoded = {} if name == REASONER else engine.run_encoder(inputs["image"])
    wanted = [output for output in outputs if output not in encoded]
    if not wanted:
        return encoded
    patches = inputs["patches"] if name == REASONER else encoded["patches"]
    tensors = {each: inputs[each] for each in INTERACTION_INPUTS}
    tensors["absent_weight"] = tensors["absent_weight"][:, 0]
    return encoded | engine.run_reasoner(patches, wanted, **tensors)
