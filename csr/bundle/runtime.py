"""Runs a bundle with ONNX Runtime, in process and without torch. Serving and the promotion gates share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnxruntime as ort

from csr.bundle.format import COMPARED_OUTPUTS, INTERACTION_INPUTS, REASONER_OUTPUTS, Bundle, Manifest
from csr.errors import BundleError
from csr.interaction.corrections import Interaction, interaction_tensors

GOLDEN_TOLERANCE = 1e-3  # between execution providers; the export itself is held to 1e-4


def tensor_shapes(about: Manifest) -> dict[str, tuple[int, ...]]:
    """What both graphs take and give, by name, without the batch axis. ``image`` is uint8, the rest is float32."""
    maps = (about.height, about.width)
    concepts, classes = len(about.concepts), len(about.classes)
    prototypes = (concepts, about.per_concept)
    return {
        "image": (about.channels, about.side, about.side),
        "patches": (about.patch_width, *maps),
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
        return self._encoder.run(["patches"], {"image": images})[0]

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
        """Largest absolute difference from the golden case's expected logits and concept maps; compare with
        `GOLDEN_TOLERANCE`."""
        golden = self.bundle.golden()
        tensors = {name: golden[name] for name in INTERACTION_INPUTS}
        answer = self.run_reasoner(self.encode(golden["image"]), COMPARED_OUTPUTS, **tensors)
        return float(np.max([np.abs(value - golden[f"expected_{name}"]).max() for name, value in answer.items()]))


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
