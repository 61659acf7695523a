"""Exports a trained CSR to the ONNX graphs of a bundle and measures that they compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from csr.bundle.format import (
    COMPARED_OUTPUTS,
    ENCODER_OUTPUTS,
    INTERACTION_INPUTS,
    PRUNING_INPUTS,
    PRUNING_OUTPUTS,
    REASONER_OUTPUTS,
)
from csr.bundle.precision import PIXELS
from csr.bundle.runtime import FIT_TOLERANCE, GOLDEN_TOLERANCE
from csr.errors import BundleError
from csr.network.guard import GuardedEncoder, InputGuard
from csr.network.reasoner import Reasoner, Reasoning
from csr.network.trained import Encoder, TrainedCSR

_BATCH = torch.export.Dim("batch", min=1, max=4096)


class _NamedReasoner(nn.Module):
    """The reasoner with all its inputs, as the graph has them."""

    def __init__(self, reasoner: Reasoner) -> None:
        super().__init__()
        self.reasoner = reasoner

    def forward(
        self, patches: Tensor, importance: Tensor, answers: Tensor, places: Tensor, absent_weight: Tensor
    ) -> tuple[Tensor, ...]:
        answer: Reasoning = self.reasoner(patches, importance, answers, places, absent_weight)
        return tuple(answer)


class _PrunedReasoner(nn.Module):
    """The reasoner from its scores on, with the mask of live prototypes as an input: see `csr.bundle.pruning`."""

    def __init__(self, reasoner: Reasoner) -> None:
        super().__init__()
        self.reasoner = reasoner

    def forward(self, scores: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        standard = self.reasoner.standardise(self.reasoner.mask_pruned(scores, alive))
        logits = self.reasoner.contributions(standard).sum(1) + self.reasoner.head.bias
        return standard, self.reasoner.probabilities(logits)


class _Body(nn.Module):
    """The encoder without a guard, with what a guard looks at."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.depths(images)


def export_graphs(csr: TrainedCSR, guard: InputGuard, images: Tensor, folder: Path) -> None:
    """Writes ``encoder.onnx``, ``reasoner.onnx`` and ``pruning.onnx`` with a free batch axis.

    Args:
        csr: trained; it is moved to the CPU.
        guard: of its encoder, on the CPU.
        images: uint8 B×C×S×S, at least two, to trace with.
        folder: where to write.
    """
    csr = csr.eval().cpu().to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        patches = csr.encoder(images)
    batch, _, height, width = patches.shape
    concepts = len(csr.reasoner.alive)
    answers, places = torch.zeros(batch, concepts), torch.zeros(batch, concepts, height, width)
    example = (patches, torch.full((batch, height, width), 0.5), answers, places, torch.ones(batch))
    encoder = GuardedEncoder(csr.encoder, guard)
    _export(encoder, (images,), ["image"], list(ENCODER_OUTPUTS), folder / "encoder.onnx")
    inputs = ["patches", *INTERACTION_INPUTS]
    _export(_NamedReasoner(csr.reasoner), example, inputs, list(REASONER_OUTPUTS), folder / "reasoner.onnx")
    scores = csr.reasoner(patches).scores
    _export(
        _PrunedReasoner(csr.reasoner),
        (scores, csr.reasoner.alive.clone()),
        list(PRUNING_INPUTS),
        list(PRUNING_OUTPUTS),
        folder / "pruning.onnx",
        batched=1,
    )


def export_body(csr: TrainedCSR, images: Tensor, file: Path) -> None:
    """Writes image → fine, patches, in float32; see `csr.network.trained.Encoder.depths`.

    Args:
        csr: trained, on the CPU.
        images: uint8 B×C×S×S, at least two, to trace with.
        file: where to write.
    """
    _export(_Body(csr.encoder), (images,), ["image"], ["fine", "patches"], file)


def export_guard(guard: InputGuard, images: Tensor, depths: tuple[Tensor, Tensor], file: Path) -> None:
    """Writes a guard on its own: the image, fine, patches → fit_scores.

    Args:
        guard: on the CPU.
        images: uint8 B×C×S×S, at least two, to trace with.
        depths: fine and patches of them.
        file: where to write.
    """
    _export(guard, (images, *depths), [PIXELS, "fine", "patches"], ["fit_scores"], file)


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    file: Path,
    batched: int | None = None,
) -> None:
    """Args:
    batched: how many of the inputs, the first ones, have a batch axis; None: all.
    """
    torch.onnx.export(
        module.eval(),
        example,
        str(file),
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=tuple({0: _BATCH} if i < (batched or len(example)) else None for i in range(len(example))),
        dynamo=True,
        external_data=False,
        optimize=True,
        verbose=False,
    )


@torch.no_grad()
def measure_parity(
    csr: TrainedCSR, guard: InputGuard | None, images: Tensor, tensors: dict[str, np.ndarray], folder: Path
) -> float:
    """Largest |Δ| of a logit or of a concept map between torch and ONNX Runtime over images, each without and with an
    interaction, and of a probability by ``pruning.onnx``. The maps are looked at because the places of findings move
    nothing else. Fit scores count in a unit in which they are as exact as logits (`csr.bundle.runtime.FIT_TOLERANCE`).

    Args:
        csr: what was exported; it computes wherever it is.
        guard: of its encoder, in the same place; None: fit scores are not compared.
        images: uint8 B×C×S×S real test images, on the CPU.
        tensors: the `INTERACTION_INPUTS` of one interaction an image.
        folder: with the graphs.
    """
    encoder = ort.InferenceSession(str(folder / "encoder.onnx"), providers=["CPUExecutionProvider"])
    reasoner = ort.InferenceSession(str(folder / "reasoner.onnx"), providers=["CPUExecutionProvider"])
    pruning = ort.InferenceSession(str(folder / "pruning.onnx"), providers=["CPUExecutionProvider"])
    neutral = {name: np.full_like(value, name not in ("answers", "places")) for name, value in tensors.items()}
    place = csr.place
    gaps: list[float] = []
    for start in range(0, len(images), 16):
        part = slice(start, start + 16)
        here = images[part].to(place)
        fine, patches = csr.encoder.depths(here)
        graph_patches, graph_scores = encoder.run(list(ENCODER_OUTPUTS), {"image": images[part].numpy()})
        if guard is not None:
            off = np.abs(graph_scores - guard(here, fine, patches).cpu().numpy()).max()
            gaps.append(float(off) * GOLDEN_TOLERANCE / FIT_TOLERANCE)
        for each in (neutral, tensors):
            chosen = {name: value[part] for name, value in each.items()}
            said = csr.reasoner(patches, *(torch.from_numpy(value).to(place) for value in chosen.values()))
            found = reasoner.run(list(COMPARED_OUTPUTS), {"patches": graph_patches, **chosen})
            for name, value in zip(COMPARED_OUTPUTS, found, strict=True):
                gaps.append(float(np.abs(value - getattr(said, name).cpu().numpy()).max()))
            if each is neutral:
                kept = {"scores": said.scores.cpu().numpy(), "alive": csr.reasoner.alive.cpu().numpy()}
                (value,) = pruning.run(["probabilities"], kept)
                gaps.append(float(np.abs(value - said.probabilities.cpu().numpy()).max()))
    return float(np.max(gaps))


def require_parity(gap: float, tolerance: float) -> None:
    """Raises:
    BundleError: the exported graphs do not compute what the trained model does.
    """
    if not gap <= tolerance:
        raise BundleError(
            f"export: |Δlogit| or |Δmap| between torch and ONNX Runtime is {gap:.2e}, above {tolerance:.0e}"
        )
