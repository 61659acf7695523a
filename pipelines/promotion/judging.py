"""What bundles say of studies, through ONNX Runtime as serving runs them: the ground that every gate stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from csr.bundle.format import Bundle
from csr.bundle.profile import fit_score
from csr.bundle.runtime import BundleRunner
from csr.data.decisions import decide
from csr.data.feedback import FeedbackSet
from csr.data.feedback.rows import Reading
from csr.data.prepared import PreparedSet
from csr.errors import BundleError, DataError
from csr.evaluation.peaks import map_peaks
from csr.evaluation.pointing import inside
from csr.interaction.answering import AnswerConfig, Findings, Reader, findings_of, read
from csr.interaction.corrections import Interaction, InteractionError, RegionBox
from pipelines.promotion.gates import READINGS

BATCH = 16
_ONE_ANSWER = AnswerConfig(budget=1)
_READER = Reader("keys", "effect", 0.0)


@dataclass(frozen=True)
class Studies:
    """What is true of n studies.

    Args:
        truth: as `csr.data.records.Collection.truth` has it: by people, or what readers signed.
        parts, sites: n names; a site may be empty.
        patients: n names, equal for studies of one patient.
        pairs: n, concepts of each study that have a box.
        classes: T names.
    """

    truth: np.ndarray
    parts: np.ndarray
    sites: np.ndarray
    patients: np.ndarray
    pairs: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """What one bundle says of n studies.

    Args:
        probabilities: n×T.
        decided: n class indices, or n×T of 1 and 0.
        answered: the same once a simulated reader has answered the question that is expected to tell most, rightly.
        hits: n, concepts whose map points into one of their boxes.
        unlike: n bool, the bundle's own guard finds the image unlike its training images.
    """

    probabilities: np.ndarray
    decided: np.ndarray
    answered: np.ndarray
    hits: np.ndarray
    unlike: np.ndarray


def check_fits(bundle: Bundle, data: PreparedSet) -> None:
    """Raises:
    BundleError: the bundle's task or input is not the data set's.
    """
    about, collection = bundle.manifest, data.collection
    for name, own, wanted in (
        ("task", about.task, collection.task),
        ("classes", about.classes, collection.classes),
        ("concepts", about.concepts, collection.concepts),
        ("input", (about.channels, about.side), (data.channels, data.side)),
    ):
        if own != wanted:
            raise BundleError(
                f"{bundle.path}: its {name} {own} are not the judging set's {wanted}, so it cannot be judged there; "
                "draw a judging set that fits (python -m pipelines.promotion.judging_sets draw), or, if the task was "
                "changed on purpose, promote by hand (csr models promote)"
            )


def studies_of(data: PreparedSet) -> Studies:
    """The studies of split ``test``."""
    collection, rows = data.collection, data.collection.rows("test")
    own = collection.studies.iloc[rows]
    pairs = np.zeros(len(collection.studies))
    for row, _ in collection.boxes_by_pair():
        pairs[row] += 1
    sites = own["site"].fillna("").to_numpy(str) if "site" in own else np.full(len(own), "")
    parts = own["part"].to_numpy(str)
    return Studies(collection.truth()[rows], parts, sites, collection.patients()[rows], pairs[rows], collection.classes)


def answers_of(runner: BundleRunner, data: PreparedSet) -> Answers:
    """What a bundle says of the studies of split ``test``, with and without one answer."""
    collection, rows = data.collection, data.collection.rows("test")
    boxes = collection.boxes_by_pair()
    found = []
    for start in range(0, len(rows), BATCH):
        own = rows[start : start + BATCH]
        encoded = runner.run_encoder(np.ascontiguousarray(data.images[own]))
        model = _Answerable(runner, encoded["patches"])
        findings = findings_of(data, own, np.zeros(len(collection.concepts), int))
        found.append((*_answered(model, findings, runner), _hits(model, own, boxes, data.side), _unlike(encoded)))
    return Answers(*(np.concatenate(each) for each in zip(*found, strict=True)))


def readings_of(feedback: FeedbackSet, bundle: Bundle) -> list[tuple[Reading, Interaction]]:
    """The signed readings that a bundle can answer, each with what its reader told the model; reverted corrections
    were not meant. Left out: images of another size, and what names other classes or concepts.
    """
    about, kept = bundle.manifest, []
    for reading in feedback.readings:
        said = _told(reading) if reading.decision == "keep" else Interaction()
        named = {*said.present, *said.rejected}
        several = about.task == "multilabel"
        if set(reading.classes) != set(about.classes) or not named <= set(about.concepts):
            continue
        if feedback.canvas(reading.study).shape != (about.channels, about.side, about.side):
            continue
        if several or len(reading.found) == 1:
            kept.append((reading, said))
    return kept


def signed(readings: Sequence[tuple[Reading, Interaction]], bundle: Bundle) -> Studies:
    """What the readers of some readings signed."""
    about = bundle.manifest
    indicators = np.array([[name in reading.found for name in about.classes] for reading, _ in readings], np.float64)
    truth = indicators if about.task == "multilabel" else indicators.argmax(1)
    count, studies = len(readings), np.array([reading.study for reading, _ in readings])
    return Studies(truth, np.full(count, READINGS), np.full(count, ""), studies, np.zeros(count), about.classes)


def replayed(runner: BundleRunner, feedback: FeedbackSet, readings: Sequence[tuple[Reading, Interaction]]) -> Answers:
    """What a bundle says where readers signed, told what they told the model that they had before them.

    Raises:
        DataError: a reading cannot be applied.
    """
    found = []
    for start in range(0, len(readings), BATCH):
        own = readings[start : start + BATCH]
        encoded = runner.run_encoder(np.stack([feedback.canvas(reading.study) for reading, _ in own]))
        try:
            answer = runner.reason(encoded["patches"], [said for _, said in own])
        except InteractionError as error:
            names = ", ".join(reading.study[:12] for reading, _ in own)
            raise DataError(f"{feedback.path}: one of the readings of {names} cannot be replayed: {error}") from None
        probabilities = answer["probabilities"]
        decided = _decided(probabilities, runner.bundle)
        found.append((probabilities, decided, decided, np.zeros(len(own)), _unlike(encoded)))
    return Answers(*(np.concatenate(each) for each in zip(*found, strict=True)))


class _Answerable:
    """A batch of studies before a bundle; see `csr.interaction.answering.Answerable`."""

    def __init__(self, runner: BundleRunner, patches: np.ndarray) -> None:
        self._runner, self._patches = runner, patches
        self._untold = runner.interaction_tensors([Interaction()] * len(patches))
        self.plain = runner.run_reasoner(
            patches, ["probabilities", "concept_probabilities", "concept_maps"], **self._untold
        )
        self.likely = self.plain["concept_probabilities"]

    def ask(self, answers: np.ndarray) -> np.ndarray:
        told = {**self._untold, "answers": answers.astype(np.float32)}
        return self._runner.run_reasoner(self._patches, ["probabilities"], **told)["probabilities"]


def _answered(model: _Answerable, findings: Findings, runner: BundleRunner) -> tuple[np.ndarray, ...]:
    several = runner.bundle.manifest.task == "multilabel"
    probabilities, _, _ = read(model, findings, _READER, _ONE_ANSWER, several)
    return probabilities[0], *(_decided(each, runner.bundle) for each in probabilities)


def _decided(probabilities: np.ndarray, bundle: Bundle) -> np.ndarray:
    about = bundle.manifest
    thresholds = None if about.thresholds is None else np.array(about.thresholds)
    return decide(probabilities, about.task == "multilabel", thresholds)


def _hits(model: _Answerable, rows: np.ndarray, boxes: dict[tuple[int, int], np.ndarray], side: int) -> np.ndarray:
    peaks = map_peaks(model.plain["concept_maps"], side)
    hits = np.zeros(len(rows))
    for position, row in enumerate(rows):
        for concept in range(peaks.shape[1]):
            found = boxes.get((int(row), concept))
            hits[position] += found is not None and inside(peaks[position, concept], found)
    return hits


def _unlike(encoded: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([fit_score(scores) > 1 for scores in encoded["fit_scores"]])


def _told(reading: Reading) -> Interaction:
    boxes = tuple(RegionBox(box.x_min, box.y_min, box.x_max, box.y_max, box.kind, box.concept) for box in reading.boxes)
    return Interaction(boxes, reading.confirmed, reading.rejected)
