"""An encoder in half precision or in int8 beside the float32 one it was made of: what it changes on validation studies,
and whether that is within the limits that were stated.

The guard is fitted anew: it compares mean features with those of the training images in units of their spread, which is
narrower than what rounding moves them by. A float32 guard takes most good images for strange ones behind int8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import torch

from csr.bundle.format import COMPARED_OUTPUTS, ENCODER_OUTPUTS, INTERACTION_INPUTS, EncoderRecord
from csr.bundle.onnx_export import export_body, export_guard
from csr.bundle.precision import calibration_digest, halve, join_guard, quantise
from csr.bundle.profile import LIMIT, InputProfile
from csr.bundle.runtime import FIT_TOLERANCE, GOLDEN_TOLERANCE
from csr.data.decisions import decide
from csr.data.prepared import PreparedSet
from csr.data.records import NO_CLASS
from csr.errors import BundleError, DataError
from csr.evaluation.metrics import macro_f1
from csr.evaluation.peaks import map_peaks
from csr.evaluation.pointing import mean_box_centres, pointing_game
from csr.interaction.corrections import Interaction, interaction_tensors
from csr.network.trained import TrainedCSR
from csr.training.guard import fit_guard

STUDIES = 1000  # validation studies that are looked at, at most, evenly spread
_ROUNDED = 64  # of these, by which the golden case's tolerance is measured
_MARGIN = 2.0  # a machine may be so many times as far off
_BATCH = 16


@dataclass(frozen=True)
class ReducedLimits:
    """What a reduced encoder may change on validation studies; beyond it the export is refused.

    Args:
        agreement: the least share of studies that are decided as by float32.
        f1, pointing: the most of macro F1 and of the pointing game (pairs) that may be lost; what is gained is free.
        probability: the most that 99 of 100 concept probabilities may move by.
        fit: the largest share of studies of which the guard may think otherwise.
    """

    agreement: float = 0.95
    f1: float = 0.02
    pointing: float = 0.02
    probability: float = 0.15
    fit: float = 0.03

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"export.reduced_limits.{name}: {value} is not between 0 and 1")


@dataclass(frozen=True)
class GraphAnswers:
    """What two graphs say of n studies without an interaction: T classes, K concepts, R parts of the guard.

    Args:
        probabilities: n×T. concepts: n×K probabilities. peaks: n×K×2, where the concepts' maps point.
        fits: n, whether the guard lets the image pass.
        compared: of the first `_ROUNDED`, the `COMPARED_OUTPUTS` and fit scores by name.
    """

    probabilities: np.ndarray
    concepts: np.ndarray
    peaks: np.ndarray
    fits: np.ndarray
    compared: dict[str, np.ndarray]


@dataclass(frozen=True)
class Reduced:
    """An encoder that was written in another precision.

    Args:
        record: for the manifest.
        profile: of the guard that was fitted to it.
        rows: validation studies. answers: what the graphs say of them.
        tolerances: of the golden case, by output.
    """

    record: EncoderRecord
    profile: InputProfile
    rows: np.ndarray
    answers: GraphAnswers
    tolerances: dict[str, float]


def reduce_encoder(
    folder: Path,
    data: PreparedSet,
    csr: TrainedCSR,
    precision: Literal["float16", "int8"],
    calibration_images: int,
    stated: Mapping[str, Sequence[str]] | None,
    thresholds: np.ndarray | None,
    limits: ReducedLimits,
) -> Reduced:
    """Replaces ``encoder.onnx``, in float32, by one of another precision, if that changes little enough.

    Args:
        folder: with the float32 graphs.
        csr: what they were exported from, on the CPU.
        calibration_images: of split ``train``, for int8; all, if there are fewer.
        stated: see `csr.training.guard.fit_guard`.
        thresholds: T, from which on a class is there, where a study can have several.

    Raises:
        BundleError: it changes more than ``limits`` allow; the float32 encoder stays.
        DataError: there are no validation studies to compare by.
    """
    rows = spread(data.collection.rows("val"), STUDIES)
    if not len(rows):
        raise DataError(f"export.precision: {precision} is judged on split 'val', which has no study; take float32")
    plain, reasoner = folder / "encoder.onnx", folder / "reasoner.onnx"
    calibrated: tuple[int | None, str | None] = (None, None)
    with TemporaryDirectory(prefix="csr-reduced-") as name:
        place = Path(name)
        body, written, joined = place / "body.onnx", place / "reduced.onnx", place / "encoder.onnx"
        example = torch.from_numpy(np.ascontiguousarray(data.images[rows[:1]].repeat(2, 0)))
        export_body(csr, example, body)
        if precision == "int8":
            images = np.ascontiguousarray(data.images[spread(data.collection.rows("train"), calibration_images)])
            calibrated = len(images), calibration_digest(images)
            quantise(body, images, written)
        else:
            halve(body, written)
        session = _session(written)

        def depths(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            fine, patches = session.run(["fine", "patches"], {"image": images.numpy()})
            return torch.from_numpy(fine), torch.from_numpy(patches)

        guard, profile = fit_guard(data, csr, stated, depths)
        export_guard(guard, example, depths(example), place / "guard.onnx")
        join_guard(written, place / "guard.onnx", joined)
        before, after = (graph_answers(encoder, reasoner, data, rows) for encoder in (plain, joined))
        parity = compare_answers(data, rows, precision, before, after, thresholds)
        require_limits(parity, precision, limits)
        other = before  # processors compute half precision in float32, so no two ways of theirs say how GPUs round it
        if precision == "int8":
            other = graph_answers(joined, reasoner, data, rows[:_ROUNDED], optimised=False)
        plain.write_bytes(joined.read_bytes())
    record = EncoderRecord(precision, *calibrated, parity)
    return Reduced(record, profile, rows, after, _tolerances(after, other))


def graph_answers(
    encoder: Path, reasoner: Path, data: PreparedSet, rows: np.ndarray, optimised: bool = True
) -> GraphAnswers:
    """What graphs say of some rows of a prepared set.

    Args:
        optimised: as a server runs the encoder; False: node by node, which rounds elsewhere.
    """
    names = ("probabilities", "concept_probabilities", *COMPARED_OUTPUTS)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "fit_scores", "peaks")}
    for number, said in enumerate(_answered(_session(encoder, optimised), _session(reasoner), data, rows, names)):
        said["peaks"] = map_peaks(said["concept_maps"], data.side)
        if number * _BATCH >= _ROUNDED:
            for name in COMPARED_OUTPUTS:  # maps of a thousand studies are large
                del said[name]
        for name, value in said.items():
            pieces[name].append(value)
    found = {name: np.concatenate(values) for name, values in pieces.items()}
    return GraphAnswers(
        found["probabilities"],
        found["concept_probabilities"],
        found["peaks"],
        found["fit_scores"].max(1) <= LIMIT,
        {name: found[name][:_ROUNDED] for name in (*COMPARED_OUTPUTS, "fit_scores")},
    )


def graph_concepts(folder: Path, data: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """n×K concept probabilities of some rows by the graphs in a folder."""
    sessions = _session(folder / "encoder.onnx"), _session(folder / "reasoner.onnx")
    name = "concept_probabilities"
    return np.concatenate([said[name] for said in _answered(*sessions, data, rows, (name,))])


def _answered(
    encoder: ort.InferenceSession,
    reasoner: ort.InferenceSession,
    data: PreparedSet,
    rows: np.ndarray,
    outputs: Sequence[str],
) -> Iterator[dict[str, np.ndarray]]:
    """The outputs named and ``fit_scores``, without an interaction, batch by batch."""
    for start in range(0, len(rows), _BATCH):
        images = np.ascontiguousarray(data.images[rows[start : start + _BATCH]])
        patches, scores = encoder.run(list(ENCODER_OUTPUTS), {"image": images})
        nothing = [Interaction()] * len(images)
        tensors = interaction_tensors(nothing, data.collection.concepts, data.side, *patches.shape[-2:])
        said = reasoner.run(list(outputs), {"patches": patches, **tensors})
        yield dict(zip(outputs, said, strict=True)) | {"fit_scores": scores}


def compare_answers(
    data: PreparedSet,
    rows: np.ndarray,
    precision: str,
    before: GraphAnswers,
    after: GraphAnswers,
    thresholds: np.ndarray | None,
) -> dict[str, Any]:
    """The record of parity: ``studies, agreement, macro_f1`` and ``pointing_game`` of both precisions, ``probability``
    (mean, 99th percentile and largest change of a concept's) and ``fit_changed``, for JSON.

    Args:
        rows: that both answer about.
    """
    collection = data.collection
    several = collection.task == "multilabel"
    truth, boxes = collection.truth()[rows], collection.boxes_by_pair()
    known = np.full(len(rows), True) if several else truth != NO_CLASS
    centres = mean_box_centres(boxes, collection.rows("train"), len(collection.concepts), data.side)
    decisions = [decide(each.probabilities, several, thresholds) for each in (before, after)]
    names = ("float32", precision)
    f1 = [macro_f1(truth[known], each[known], len(collection.classes)) for each in decisions]
    pointing = [pointing_game(each.peaks, boxes, rows, centres, data.side).pair for each in (before, after)]
    moved = np.abs(after.concepts - before.concepts)
    same = (decisions[0] == decisions[1]).reshape(len(rows), -1).all(1)
    spreads = {"mean": moved.mean(), "p99": np.quantile(moved, 0.99), "most": moved.max()}
    return {
        "studies": len(rows),
        "agreement": _number(same.mean()),
        "macro_f1": {name: _number(value) for name, value in zip(names, f1, strict=True)},
        "pointing_game": {name: _number(value) for name, value in zip(names, pointing, strict=True)},
        "probability": {name: _number(value) for name, value in spreads.items()},
        "fit_changed": _number((before.fits != after.fits).mean()),
    }


def _number(value: Any) -> float | None:
    """Six digits; None where there is nothing to measure, as JSON has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def require_limits(parity: Mapping[str, Any], precision: str, limits: ReducedLimits) -> None:
    """Raises:
    BundleError: a figure of `compare_answers` is outside ``limits``; the sentence names all that are.
    """
    found = []
    if not parity["agreement"] >= limits.agreement:
        found.append(f"{parity['agreement']:.3f} of them are decided alike, below agreement {limits.agreement}")
    for name, key, limit in (("macro F1", "macro_f1", limits.f1), ("pointing", "pointing_game", limits.pointing)):
        plain, own = parity[key]["float32"], parity[key][precision]
        if plain is not None and not (own is not None and plain - own <= limit):
            option = "f1" if key == "macro_f1" else "pointing"
            found.append(f"{name} is {own} and not {plain}, a loss above {option} {limit}")
    if not parity["probability"]["p99"] <= limits.probability:
        found.append(
            f"1 in 100 concept probabilities moves by {parity['probability']['p99']:.3f} or more, "
            f"above probability {limits.probability}"
        )
    if not parity["fit_changed"] <= limits.fit:
        found.append(f"the guard thinks otherwise of {parity['fit_changed']:.3f} of them, above fit {limits.fit}")
    if found:
        raise BundleError(
            f"export.precision: {precision} changes too much on {parity['studies']} validation studies: "
            f"{'; '.join(found)} (export.reduced_limits). No bundle is written; take float32, for int8 more "
            "calibration_images, or allow more"
        )


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


def _tolerances(said: GraphAnswers, otherwise: GraphAnswers) -> dict[str, float]:
    """By how much each output may differ from the golden case on another machine, which rounds otherwise: never less
    than in float32."""
    least = dict.fromkeys(COMPARED_OUTPUTS, GOLDEN_TOLERANCE) | {"fit_scores": FIT_TOLERANCE}
    return {
        name: max(floor, _MARGIN * float(np.abs(said.compared[name] - otherwise.compared[name]).max()))
        for name, floor in least.items()
    }


def _session(file: Path, optimised: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def golden_answers(
    folder: Path, images: np.ndarray, tensors: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """What the graphs in a folder say of images and one interaction each: the outputs named, and ``fit_scores``."""
    patches, scores = _session(folder / "encoder.onnx").run(list(ENCODER_OUTPUTS), {"image": images})
    feeds = {"patches": patches, **{name: tensors[name] for name in INTERACTION_INPUTS}}
    found = _session(folder / "reasoner.onnx").run(list(outputs), feeds)
    return dict(zip(outputs, found, strict=True)) | {"fit_scores": scores}
