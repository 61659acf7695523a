"""Runs a bundle with ONNX Runtime, in process and without torch. Serving and the promotion gates share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnxruntime as ort

from csr.bundle.format import (
    COMPARED_OUTPUTS,
    ENCODER_OUTPUTS,
    INTERACTION_INPUTS,
    REASONER_OUTPUTS,
    Bundle,
    Manifest,
)
from csr.bundle.profile import PARTS
from csr.errors import BundleError
from csr.interaction.corrections import Interaction, interaction_tensors

GOLDEN_TOLERANCE = 1e-3  # between execution providers; the export itself is held to 1e-4
FIT_TOLERANCE = 0.02  # the same of a fit score, whose limit is 1; squares of small numbers are less exact


def tensor_shapes(about: Manifest) -> dict[str, tuple[int, ...]]:
    """What both graphs take and give, by name, without the batch axis. ``image`` is uint8, the rest is float32."""
    maps = (about.height, about.width)
    concepts, classes = len(about.concepts), len(about.classes)
    prototypes = (concepts, about.per_concept)
    return {
        "image": (about.channels, about.side, about.side),
        "patches": (about.patch_width, *maps),
        "fit_scores": (len(PARTS),),
        "importance": maps,
        "answers": (concepts,),
        "places": (concepts, *maps),
        "absent_weight": (),
        "similarity_maps": prototypes + maps,
        "concept_maps": (concepts, *maps),
        "scores": prototypes,
        "concept_probabilities": (concepts,),
        "contributions": (concepts, classes),
        "logits": (classes,),
        "probabilities": (classes,),
    }


class BundleRunner:
    """Two sessions of one bundle. Thread-safe: ONNX Runtime sessions are, and nothing else is kept.

    Args:
        bundle: a verified bundle.
        threads: intra-op threads of each session.
        device: ``cpu`` or ``cuda``; ``cuda`` fails rather than falling back.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, device: Literal["cpu", "cuda"] = "cpu") -> None:
        self.bundle = bundle
        self._encoder = _session(bundle, "encoder.onnx", threads, device)
        self._reasoner = _session(bundle, "reasoner.onnx", threads, "cpu")  # microseconds: not worth a copy to a GPU

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 B×C×S×S → patches float32 B×D'×h×w."""
        return self.run_encoder(images, ["patches"])["patches"]

    def run_encoder(self, images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """uint8 B×C×S×S → all outputs of the encoder, or those named."""
        names = list(ENCODER_OUTPUTS if outputs is None else outputs)
        return dict(zip(names, self._encoder.run(names, {"image": images}), strict=True))

    def reason(self, patches: np.ndarray, interactions: Sequence[Interaction]) -> dict[str, np.ndarray]:
        """Patches of B studies and one interaction each → every output of the reasoner by name.

        Raises:
            InteractionError: a box outside the image or an unknown concept.
        """
        return self.run_reasoner(patches, None, **self.interaction_tensors(interactions))

    def interaction_tensors(self, interactions: Sequence[Interaction]) -> dict[str, np.ndarray]:
        """The `INTERACTION_INPUTS` of a batch of interactions."""
        about = self.bundle.manifest
        return interaction_tensors(interactions, about.concepts, about.side, about.height, about.width)

    def run_reasoner(
        self, patches: np.ndarray, outputs: Sequence[str] | None = None, **tensors: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The reasoner on ready tensors: all of its outputs, or those named."""
        names = list(REASONER_OUTPUTS if outputs is None else outputs)
        values = self._reasoner.run(names, {"patches": patches, **tensors})
        return dict(zip(names, values, strict=True))

    def golden_error(self) -> float:
        """`golden_gap` of what is computed here; compare with `GOLDEN_TOLERANCE`."""
        golden = self.bundle.golden()
        tensors = {name: golden[name] for name in INTERACTION_INPUTS}
        encoded = self.run_encoder(golden["image"])
        answer = self.run_reasoner(encoded["patches"], COMPARED_OUTPUTS, **tensors)
        return golden_gap(golden, encoded | answer)


def golden_gap(golden: Mapping[str, np.ndarray], answer: Mapping[str, np.ndarray]) -> float:
    """Largest absolute difference from the golden case's expected logits, concept maps and fit scores; NaN if any is.

    Each is in a unit in which it may differ by `GOLDEN_TOLERANCE`. For logits and maps that is 1, unless the case has
    tolerances of its own: machines that compute in half precision or int8 differ by steps of these.

    Args:
        golden: `csr.bundle.format.Bundle.golden`.
        answer: ``fit_scores`` and the `COMPARED_OUTPUTS` of what it holds.
    """
    tolerances = dict.fromkeys(COMPARED_OUTPUTS, GOLDEN_TOLERANCE) | {"fit_scores": FIT_TOLERANCE}
    units = {name: golden.get(f"tolerance_{name}", each) / GOLDEN_TOLERANCE for name, each in tolerances.items()}
    gaps = [np.abs(answer[name] - golden[f"expected_{name}"]).max() / unit for name, unit in units.items()]
    return float(np.max(gaps))


def _session(bundle: Bundle, name: str, threads: int, device: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    providers: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    if device == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}))
    session = ort.InferenceSession(str(bundle.path / name), options, providers=providers)
    if session.get_providers()[0] != providers[0][0]:
        raise BundleError(
            f"{name}: ONNX Runtime cannot use CUDA here; pip install 'csr[gpu]' on a machine with a GPU, or use the CPU"
        )
    return session
