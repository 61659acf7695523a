"""Puts a bundle together from trained parts: graphs, atlas, validation, input profile, drift reference, golden
case, samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csr.bundle.atlas import Atlas
from csr.bundle.format import (
    REASONER_OUTPUTS,
    Bundle,
    ConceptReference,
    Precision,
    write_atlas,
    write_manifest,
    write_reference,
)
from csr.bundle.onnx_export import export_graphs, measure_parity, require_parity
from csr.bundle.profile import HEADERS
from csr.bundle.reduced import ReducedLimits, golden_answers, graph_concepts, reduce_encoder, spread
from csr.bundle.validation_fit import crop_maps, fit_validation
from csr.data.atomic_folder import atomic_folder
from csr.data.images import to_png
from csr.data.prepared import PreparedSet
from csr.data.records import BOX_COLUMNS
from csr.errors import ConfigError, DataError
from csr.evaluation.calibration import abstain_threshold, risk_coverage
from csr.interaction.corrections import Interaction, RegionBox, interaction_tensors
from csr.interaction.naming_fit import fit_naming
from csr.network.guard import GuardedEncoder, InputGuard
from csr.network.reasoner import DEFAULT_ALPHA
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.guard import fit_guard
from csr.training.thresholds import own_thresholds

REFERENCE_BINS = 10
REFERENCE_IMAGES = 3000  # at most, where no cached features are of the encoder that is served
_DECIMALS = 4  # of a probability: what is beyond them differs between torch and ONNX Runtime, and says nothing


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from; see `csr.bundle.format.Manifest`."""

    preset: str
    data_digest: str
    code_revision: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class ExportConfig:
    """What a bundle carries beside its graphs.

    Args:
        alpha: weight outside focus boxes, below 1, or the box would say nothing: of every concept, or each concept's
            own by its name; what is not named has `csr.network.reasoner.DEFAULT_ALPHA`.
        rejection, ask_margin, least_effect: the serving defaults written to the manifest.
        abstain_risk: the share of wrong answers in (0, 1) that is tolerated on split ``val``: the model then abstains
            from the studies it is least sure of, as few as that takes (`csr.evaluation.calibration.abstain_threshold`).
            None: it never abstains; the default, since those who act on the answers must say how many may be wrong.
        parity_images: how many test images parity is measured on. tolerance: the largest allowed |Δlogit|.
        samples: how many test images to pack, spread over the classes; fewer if there are no more.
        precision: of the encoder's graph: ``float32``, ``int8`` for processors or ``float16`` for GPUs; see
            `csr.bundle.precision`. The rest of a bundle is in float32 always.
        calibration_images: training images that the ranges of int8 are taken from.
        reduced_limits: what a precision below float32 may change; beyond that there is no bundle.
        expects: terms that a file's header must be among, for example ``{modality: [CR, DX], body_part: [CHEST]}``: a
            file that says another does not fit. Names are those of `csr.bundle.profile.HEADERS`; what is not named, and
            None, takes the terms from the columns of these names in the table of studies, or what is known of a
            published set (`csr.data.headers`).
    """

    alpha: float | dict[str, float] = DEFAULT_ALPHA
    rejection: str = "absent"
    ask_margin: float = 0.3
    least_effect: float = 0.1
    abstain_risk: float | None = None
    parity_images: int = 64
    tolerance: float = 1e-4
    samples: int = 40
    precision: Precision = "float32"
    calibration_images: int = 256
    reduced_limits: ReducedLimits = field(default_factory=ReducedLimits)
    expects: dict[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise ValueError(f"export.calibration_images: {self.calibration_images} is not 1 or more")
        given = self.alpha if isinstance(self.alpha, dict) else {"alpha": self.alpha}
        if wrong := {name: value for name, value in given.items() if not 0 <= value < 1}:
            name, value = next(iter(wrong.items()))
            raise ValueError(f"export.alpha: {name} is {value}, which is not from 0 to below 1")
        if self.abstain_risk is not None and not 0 < self.abstain_risk < 1:
            raise ValueError(f"export.abstain_risk: {self.abstain_risk} is neither between 0 and 1 nor null")
        if unknown := [name for name in self.expects or {} if name not in HEADERS]:
            raise ValueError(f"export.expects: {unknown[0]!r} is none of {', '.join(HEADERS)}")


def write_bundle(
    path: Path,
    data: PreparedSet,
    cache: FeatureCache,
    csr: TrainedCSR,
    atlas: Atlas,
    config: ExportConfig,
    origin: Provenance,
) -> tuple[Bundle, float]:
    """Writes the bundle to ``path``, whole or not at all.

    Args:
        cache: the backbone's features of every study, of the same backbone as ``csr``'s.

    Returns:
        The opened bundle and the measured parity, max |Δlogit| and |Δmap| over real test images with and without an
        interaction.

    Raises:
        BundleError: parity is above ``config.tolerance``, or an encoder below float32 changes more than
            ``config.reduced_limits`` allow; nothing is written.
        ConfigError: no threshold brings the errors on ``val`` down to ``config.abstain_risk``; nothing is written.
        DataError: the data set has concepts only, so the model says nothing that could be served, or no validation
            studies by which another precision than float32 could be judged.
    """
    if data.collection.task == "concepts":
        raise DataError(
            f"export: {data.collection.name!r} has concepts and no classes (data.task), and a bundle serves a "
            "diagnosis; the stages up to evaluate and atlas are all there is for such a set"
        )
    thresholds = own_thresholds(data, cache, csr)
    csr = csr.cpu().eval()
    _set_alpha(csr, config.alpha)
    abstain_below = None
    if config.abstain_risk is not None and config.precision == "float32":
        rows = data.collection.rows("val")
        abstain_below = _abstain_below(data, rows, _probabilities(data, csr, rows), config.abstain_risk, thresholds)
    test = data.collection.rows("test")
    chosen = test[np.linspace(0, len(test) - 1, min(config.parity_images, len(test))).astype(int)]
    images = torch.from_numpy(np.ascontiguousarray(data.images[chosen]))
    with torch.no_grad():
        height, width = csr.encoder(images[:1]).shape[-2:]
    tensors = _interactions(data, csr, len(chosen), (height, width))
    guard, profile = fit_guard(data, csr, config.expects)
    with atomic_folder(path) as draft:
        export_graphs(csr, guard, images[:2], draft)
        gap = measure_parity(csr, guard, images, tensors, draft)
        require_parity(gap, config.tolerance)
        golden = {name: each[:2] for name, each in tensors.items()}
        encoder = None
        if config.precision == "float32":
            _write_golden(draft / "golden.npz", csr, guard, images[:2], golden)
            probabilities = _concept_probabilities(csr, cache, data.collection.rows("train"))
        else:
            reduced = reduce_encoder(
                draft,
                data,
                csr,
                config.precision,
                config.calibration_images,
                config.expects,
                thresholds,
                config.reduced_limits,
            )
            encoder, profile = reduced.record, reduced.profile
            if config.abstain_risk is not None:
                said = reduced.answers.probabilities
                abstain_below = _abstain_below(data, reduced.rows, said, config.abstain_risk, thresholds)
            _write_reduced_golden(draft, images[:2].numpy(), golden, reduced.tolerances)
            probabilities = graph_concepts(draft, data, spread(data.collection.rows("train"), REFERENCE_IMAGES))
        (draft / "profile.json").write_text(json.dumps(profile.to_json(), indent=1) + "\n")
        write_atlas(draft, atlas.entries, atlas.crops)
        maps = crop_maps(data, cache, csr, atlas.entries, atlas.crops.shape[-1])
        np.save(draft / "crop_maps.npy", maps)
        fit_validation(data, cache, csr).write(draft / "validation.npz")
        write_reference(draft, concept_references(data.collection.concepts, probabilities))
        naming = fit_naming(data, cache, csr)
        (draft / "naming.json").write_text(json.dumps(naming and naming.to_json()) + "\n")
        write_samples(draft / "samples", data, config.samples)
        write_manifest(
            draft,
            preset=origin.preset,
            task=data.collection.task,
            concepts=data.collection.concepts,
            classes=data.collection.classes,
            channels=data.channels,
            side=data.side,
            display=data.collection.display,
            height=height,
            width=width,
            per_concept=csr.reasoner.alive.shape[1],
            patch_width=csr.reasoner.prototypes.shape[2],
            alpha=config.alpha,
            rejection=config.rejection,
            ask_margin=config.ask_margin,
            least_effect=config.least_effect,
            thresholds=None if thresholds is None else tuple(thresholds.tolist()),
            abstain_below=abstain_below,
            backbone=csr.concept_model.config.backbone,
            data=data.collection.name,
            data_digest=origin.data_digest,
            code_revision=origin.code_revision,
            metrics=origin.metrics,
            encoder=encoder,
        )
    return Bundle.open(path), gap


def _set_alpha(csr: TrainedCSR, alpha: float | dict[str, float]) -> None:
    """Raises:
    ConfigError: it names a concept that there is none of.
    """
    if not isinstance(alpha, dict):
        csr.reasoner.alpha.fill_(alpha)
        return
    if unknown := [name for name in alpha if name not in csr.concepts]:
        raise ConfigError(f"export.alpha: there is no concept {unknown[0]!r}, only {', '.join(csr.concepts)}")
    csr.reasoner.alpha.copy_(torch.tensor([alpha.get(name, DEFAULT_ALPHA) for name in csr.concepts]))


def concept_references(concepts: Sequence[str], probabilities: np.ndarray) -> list[ConceptReference]:
    """Bins each concept's probabilities at their own deciles, or at fewer places where many images share one value.

    A clipped score gives a tenth of all images and more the very same probability. An edge at that value would leave
    it to rounding on which side they fall, so edges lie half-way to the next value that an image has.

    Args:
        concepts: K names.
        probabilities: N×K in [0, 1].
    """
    references = []
    for name, column in zip(concepts, probabilities.T.astype(np.float64).round(_DECIMALS), strict=True):
        deciles = np.quantile(column, np.arange(1, REFERENCE_BINS) / REFERENCE_BINS, method="inverted_cdf")
        values, below = np.unique(column), np.unique(deciles)
        place = values.searchsorted(below[below < values[-1]])  # above the largest value no bin would hold anything
        edges = ((values[place] + values[place + 1]) / 2).round(_DECIMALS + 1)
        counts = np.bincount(edges.searchsorted(column), minlength=len(edges) + 1)
        references.append(ConceptReference(name, tuple(edges.tolist()), tuple((counts / len(column)).tolist())))
    return references


@torch.no_grad()
def _concept_probabilities(csr: TrainedCSR, cache: FeatureCache, rows: np.ndarray) -> np.ndarray:
    """N×K of the given rows without interaction, from the cached features: what the exported reasoner gives."""
    pieces = []
    for start in range(0, len(rows), 64):
        features, _ = cache.batch(rows[start : start + 64], torch.device("cpu"))
        pieces.append(csr.reasoner(csr.project(features)).concept_probabilities)
    return torch.cat(pieces).numpy()


@torch.no_grad()
def _probabilities(data: PreparedSet, csr: TrainedCSR, rows: np.ndarray) -> np.ndarray:
    """n×T of some rows."""
    pieces = [
        csr(torch.from_numpy(np.ascontiguousarray(data.images[rows[start : start + 16]]))).probabilities
        for start in range(0, len(rows), 16)
    ]
    return torch.cat(pieces).numpy()


def _abstain_below(
    data: PreparedSet, rows: np.ndarray, probabilities: np.ndarray, risk: float, thresholds: np.ndarray | None
) -> float:
    """The confidence from which on at most a share ``risk`` of the answers about rows of split ``val`` is wrong."""
    truth = data.collection.truth()[rows]
    threshold = abstain_threshold(truth, probabilities, risk, thresholds)
    if np.isfinite(threshold):
        return threshold
    least = risk_coverage(truth, probabilities, thresholds).risk.min()
    raise ConfigError(
        f"export.abstain_risk: {risk} is out of reach: on the {len(rows)} studies of split 'val' no threshold leaves a "
        f"smaller share of wrong answers than {least:.3f}; allow more, or set null to never abstain"
    )


def _interactions(data: PreparedSet, csr: TrainedCSR, count: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """One fixed interaction an image: a focus box that wanders, an ignore and a finding box, and two answers."""
    names, side = data.collection.concepts, float(data.side)
    interactions = []
    for index in range(count):
        shift = side * 0.5 * index / count
        found, confirmed, rejected = (names[(index + step) % len(names)] for step in range(3))
        boxes = (
            RegionBox(shift, shift, shift + side / 3, shift + side / 2, "focus"),
            RegionBox(0, 0, side / 4, side / 4, "ignore"),
            RegionBox(side / 2, side / 3, side * 0.7, side * 0.6, "finding", found),
        )
        interactions.append(
            Interaction(
                boxes,
                confirmed=(confirmed,),
                rejected=(rejected,) if rejected not in (found, confirmed) else (),
                alpha=None if index % 2 else 0.5,  # the reasoner's own, or one number for all
                rejection="absent" if index % 2 else "zero",
            )
        )
    return interaction_tensors(interactions, names, data.side, *size)


@torch.no_grad()
def _write_golden(
    file: Path, csr: TrainedCSR, guard: InputGuard, images: torch.Tensor, tensors: dict[str, np.ndarray]
) -> None:
    patches, scores = GuardedEncoder(csr.encoder, guard).eval()(images)
    answer = csr.reasoner(patches, *(torch.from_numpy(value) for value in tensors.values()))
    expected = {f"expected_{name}": getattr(answer, name).numpy() for name in REASONER_OUTPUTS}
    expected["expected_fit_scores"] = scores.numpy()
    del expected["expected_similarity_maps"]  # the concept maps stand for them at an M-th of the size
    arrays: dict[str, Any] = {"image": images.numpy(), **tensors, **expected}
    np.savez_compressed(file, **arrays)


def _write_reduced_golden(
    folder: Path, images: np.ndarray, tensors: Mapping[str, np.ndarray], tolerances: Mapping[str, float]
) -> None:
    """The golden case of an encoder that is not in float32: what its own graph says, and how nearly."""
    outputs = [name for name in REASONER_OUTPUTS if name != "similarity_maps"]
    expected = {f"expected_{name}": value for name, value in golden_answers(folder, images, tensors, outputs).items()}
    allowed = {f"tolerance_{name}": np.float32(value) for name, value in tolerances.items()}
    arrays: dict[str, Any] = {"image": images, **tensors, **expected, **allowed}
    np.savez_compressed(folder / "golden.npz", **arrays)


def write_samples(folder: Path, data: PreparedSet, count: int) -> None:
    """Packs test images with their labels and boxes, to try the page with.

    Args:
        folder: where they go; it must not be there.
        data: the prepared set.
        count: how many, from each class in turn and none twice; fewer if there are no more.
    """
    folder.mkdir()
    studies = data.collection.studies
    rows: list[dict[str, Any]] = []
    test = data.collection.rows("test")
    by_class = [test[has].tolist() for has in (data.collection.class_indicators()[test] == 1).T]
    in_turn = (row for turn in zip_longest(*by_class) for row in turn if row is not None)
    for row in list(dict.fromkeys(in_turn))[:count]:  # a study of several classes comes once
        study = str(studies["study_id"].iat[row])
        file = f"{len(rows):02d}.png"
        (folder / file).write_bytes(to_png(data.images[row]))
        boxes = data.collection.boxes
        present = [name for name in data.collection.concepts if studies[f"concept:{name}"].iat[row] == 1]
        own_boxes = boxes.loc[boxes["study_id"] == study, list(BOX_COLUMNS[1:])].values.tolist()
        diagnosis = data.collection.diagnosis(row)
        rows.append({"study_id": study, "file": file, "diagnosis": diagnosis, "concepts": present, "boxes": own_boxes})
    (folder / "samples.json").write_text(json.dumps(rows, indent=1) + "\n")
