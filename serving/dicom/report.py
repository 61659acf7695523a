"""A reading as a DICOM structured report: TID 1500 Measurement Report, in PS3.16's terms where it has them.

One measurement group for the model's word as a whole (does it abstain? is the image like those that it was trained on,
and if not, why?), which of a signed reading also holds the reader's decision, comment and entry of the ledger; one a
class, one a concept with what the
reader says of it, one a box of the reader. A concept with a peak is a planar region (TID 1410) of one point, a box one
of a closed polyline, the others are measurements of the whole image (TID 1501). A box that shows a finding has the
finding's code, so whoever looks for a concept finds the model's point and the reader's places. Coordinates are in
pixels of the image, (0, 0) is the upper left corner of the upper left pixel, as in `serving.interfaces.schemas`. The
storage class is Comprehensive SR: all coordinates are 2D, and more archives know it than Comprehensive 3D SR.

Concepts and classes have no public codes. Their private ones (scheme ``99CSR``) are derived from their names alone, so
they are the same for every bundle that uses the name.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import pydicom
from highdicom import UID, sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, TM

from csr.bundle.profile import ReasonCode
from serving.dicom.deidentify import DicomSource
from serving.dicom.identity import NAME, NOTICE, UTF8, Algorithm, original, to_bytes
from serving.errors import FrameError

SCHEME = "99CSR"
SERIES_NUMBER = 9901
_READER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def _code(value: str, meaning: str) -> sr.CodedConcept:
    return sr.CodedConcept(value, SCHEME, meaning)


ASSESSMENT = _code("ASSESSMENT", "Assessment of the image")
ABSTAINS = _code("ABSTAINS", "Model abstains")
FITS = _code("FITS", "Image is like the training images")
FIT_SCORE = _code("FIT_SCORE", "Unlikeness to training images, limit 1")
MISFIT = _code("MISFIT", "Reason against reading the image")
CLASS = _code("CLASS", "Class")
PREDICTED = _code("PREDICTED", "Predicted")
CONCEPT = _code("CONCEPT", "Concept")
VERDICT = _code("VERDICT", "Reader's verdict")
CONFIRMED = _code("CONFIRMED", "Confirmed")
REJECTED = _code("REJECTED", "Rejected")
NO_VERDICT = _code("NO_VERDICT", "No verdict")
REGION = _code("REGION", "Reader's region")
PLACE = _code("PLACE", "Reader's place of a finding")
FOCUS = _code("FOCUS", "Region to focus on")
IGNORE = _code("IGNORE", "Region to ignore")
DECISION = _code("DECISION", "Reader's decision")
KEPT = _code("KEPT", "Signed with the reader's corrections")
REVERTED = _code("REVERTED", "Signed as predicted")
LEDGER_ENTRY = _code("LEDGER_ENTRY", "Entry of the audit ledger")
_DECISIONS = {"keep": KEPT, "revert": REVERTED}
_VERDICTS = {"none": NO_VERDICT, "confirmed": CONFIRMED, "rejected": REJECTED}


_MEANINGS: dict[ReasonCode, str] = {
    "texture": "Texture unlike the training images",
    "content": "Content unlike the training images",
    "layout": "Layout unlike the training images",
    "handedness": "Looks mirrored",
    "grey_levels": "Grey values unlike the training images",
    "detail": "Sharper, smoother or noisier than training images",
    "modality": "Another modality than the training images",
    "body_part": "Another body part than the training images",
    "view": "Another view than the training images",
    "photometric": "Another photometric interpretation than training images",
    "secondary_capture": "Secondary capture",
    "colour": "In colour, unlike the training images",
    "aspect": "Another aspect ratio than the training images",
}


@dataclass(frozen=True)
class Finding:
    """One concept: its probability, what the reader says of it, and where (x, y) its map is largest, if it has."""

    name: str
    probability: float
    verdict: Literal["none", "confirmed", "rejected"] = "none"
    peak: tuple[float, float] | None = None


@dataclass(frozen=True)
class ReaderBox:
    """A box that the reader drew, in pixels of the image; ``concept`` is what a ``finding`` box shows."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float
    kind: Literal["focus", "ignore", "finding"]
    concept: str | None = None


@dataclass(frozen=True)
class ClassProbability:
    """One class with its calibrated probability; ``predicted``: the model says that the study has it."""

    name: str
    probability: float
    predicted: bool = False


@dataclass(frozen=True)
class Signature:
    """How a reader signed.

    Args:
        decision: whether with the corrections, or as predicted.
        comment: for whoever reads the report; may be empty.
        number, hash, at: of the ledger's entry that says so.
    """

    decision: Literal["keep", "revert"]
    comment: str
    number: int
    hash: str
    at: str


@dataclass(frozen=True)
class Reading:
    """What the model says about an image after what the reader told it.

    Args:
        findings, classes, boxes: see there.
        abstains: the model is not sure enough to answer; the rest is still what it would say.
        fit_score: how unlike the training images the image is; None if that was not measured.
        misfits: why it is unlike them; none if it is like them.
        reader: the reader's pseudonym, letters, digits and ``._-``; None if nobody but the model has read the image.
        signature: None if nobody has signed.
    """

    findings: tuple[Finding, ...]
    classes: tuple[ClassProbability, ...]
    boxes: tuple[ReaderBox, ...] = ()
    abstains: bool = False
    fit_score: float | None = None
    misfits: tuple[ReasonCode, ...] = ()
    reader: str | None = None
    signature: Signature | None = None

    def __post_init__(self) -> None:
        named = [(each.name, each.probability) for each in self.findings]
        for name, probability in named + [(each.name, each.probability) for each in self.classes]:
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}: {probability} is not a probability")
        if self.reader is not None and not _READER.fullmatch(self.reader):
            raise ValueError("reader: a pseudonym has up to 63 letters, digits and ._-")


def structured_report(
    source: DicomSource,
    reading: Reading,
    algorithm: Algorithm,
    at: datetime,
    context: pydicom.Dataset | None = None,
) -> bytes:
    """Writes the report as a DICOM file.

    Args:
        source: of the image that was read.
        reading, algorithm: what was said of it, and by what.
        at: when, in the time zone that the archive's other objects are in.
        context: the image's own header from the archive that is to file the report; None: a pseudonymous report.

    Raises:
        DicomContextError: the context is the header of another image, or cannot be copied.
        FrameError: a box or peak lies outside the image.
    """
    image = original(source, context)
    groups = _Groups(source, image, algorithm).of(reading)

    def make() -> sr.ComprehensiveSR:
        content = sr.MeasurementReport(
            observation_context=_observers(reading, algorithm),
            procedure_reported=codes.cid100.ImagingProcedure,
            imaging_measurements=groups,
        )
        return sr.ComprehensiveSR(
            evidence=[image],
            content=content,
            series_instance_uid=UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=UID(),
            instance_number=1,
            series_description=f"{NAME} reading, {NOTICE}",
            is_complete=True,
            is_final=reading.signature is not None,
            coding_schemes=[CodingSchemeIdentificationItem(SCHEME, f"{NAME} concepts and classes")],
            content_date=DA(at.date()),
            content_time=TM(at.time()),
            specific_character_set=UTF8,
            **algorithm.equipment(),
        )

    return to_bytes(make, context, at)


def concept_code(name: str) -> sr.CodedConcept:
    """The private code of a concept."""
    return _named("C", name)


def misfit_code(reason: ReasonCode) -> sr.CodedConcept:
    """The private code of a reason against reading an image."""
    return _named("M", reason, _MEANINGS[reason])


def class_code(name: str) -> sr.CodedConcept:
    """The private code of a class; another one than that of a concept of the same name."""
    return _named("T", name)


def _named(kind: str, name: str, meaning: str | None = None) -> sr.CodedConcept:
    """A code value of 16 characters (SH) that depends on the name alone, and as much of the name as a meaning (LO) may
    hold. The whole name is the group's tracking identifier."""
    value = kind + hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:15].upper()
    return _code(value, _printable(meaning or name)[:64])


def _printable(name: str) -> str:
    """Without control characters, which DICOM takes for line ends and changes of character set, and its separator."""
    return "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in name)


def _observers(reading: Reading, algorithm: Algorithm) -> sr.ObservationContext:
    number = uuid.UUID(bytes=hashlib.sha256(algorithm.digest.encode()).digest()[:16], version=4).int
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=f"2.25.{number}",  # the same bundle is the same device
        name=NAME,
        manufacturer_name=NAME,
        model_name=f"{NAME}, {NOTICE}",
        serial_number=algorithm.digest,
    )
    person = None
    if reading.reader is not None:
        name = sr.PersonObserverIdentifyingAttributes(name=f"{reading.reader}^")
        person = sr.ObserverContext(codes.cid270.Person, name)
    return sr.ObservationContext(
        observer_person_context=person, observer_device_context=sr.ObserverContext(codes.cid270.Device, device)
    )


_Group = sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations


class _Groups:
    """Makes the measurement groups of one image."""

    def __init__(self, source: DicomSource, image: pydicom.Dataset, algorithm: Algorithm) -> None:
        self._size = (source.columns, source.rows)
        frames = None if source.frame is None else [source.frame]
        self._image = (image.SOPClassUID, image.SOPInstanceUID, frames)
        self._algorithm = sr.AlgorithmIdentification(
            name=NAME, version=algorithm.version, parameters=[f"bundle sha256:{algorithm.digest}"], manufacturer=NAME
        )

    def of(self, reading: Reading) -> list[_Group]:
        abstains = sr.QualitativeEvaluation(ABSTAINS, _yes_no(reading.abstains))
        said, measured = [abstains], []
        if reading.fit_score is not None:
            measured.append(sr.Measurement(FIT_SCORE, reading.fit_score, codes.UCUM.NoUnits))
            said.append(sr.QualitativeEvaluation(FITS, _yes_no(not reading.misfits)))
            said += [sr.QualitativeEvaluation(MISFIT, misfit_code(code)) for code in reading.misfits]
        if reading.signature is not None:
            said.append(sr.QualitativeEvaluation(DECISION, _DECISIONS[reading.signature.decision]))
        whole = self._whole_image("assessment", ASSESSMENT, None, measured, said)
        if reading.signature is not None:
            whole[0].ContentSequence.extend(_texts(reading.signature))
        classes = [self._class(each) for each in reading.classes]
        findings = [self._finding(each) for each in reading.findings]
        return [whole, *classes, *findings, *(self._box(number, box) for number, box in enumerate(reading.boxes, 1))]

    def _class(self, given: ClassProbability) -> _Group:
        predicted = sr.QualitativeEvaluation(PREDICTED, _yes_no(given.predicted))
        return self._whole_image(
            given.name, class_code(given.name), CLASS, [_probability(given.probability)], [predicted]
        )

    def _finding(self, given: Finding) -> _Group:
        verdict = sr.QualitativeEvaluation(VERDICT, _VERDICTS[given.verdict])
        measured, code = [_probability(given.probability)], concept_code(given.name)
        if given.peak is None:
            return self._whole_image(given.name, code, CONCEPT, measured, [verdict])
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(UID(), _printable(given.name)),
            referenced_region=self._region(sr.GraphicTypeValues.POINT, [given.peak]),
            finding_type=code,
            finding_category=CONCEPT,
            algorithm_id=self._algorithm,
            measurements=measured,
            qualitative_evaluations=[verdict],
        )

    def _box(self, number: int, box: ReaderBox) -> _Group:
        left, top, right, bottom = box.x_min, box.y_min, box.x_max, box.y_max
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        kind, category, said = (FOCUS if box.kind == "focus" else IGNORE), REGION, []
        if box.concept is not None:
            kind, category = concept_code(box.concept), PLACE
            said = [sr.QualitativeEvaluation(VERDICT, CONFIRMED)]
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(UID(), f"box {number}"),
            referenced_region=self._region(sr.GraphicTypeValues.POLYLINE, corners),
            finding_type=kind,
            finding_category=category,
            qualitative_evaluations=said,
        )

    def _whole_image(
        self,
        name: str,
        finding: sr.CodedConcept,
        category: sr.CodedConcept | None,
        measured: list[sr.Measurement],
        evaluated: list[sr.QualitativeEvaluation],
    ) -> _Group:
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(UID(), _printable(name)),
            finding_type=finding,
            finding_category=category,
            algorithm_id=self._algorithm,
            measurements=measured,
            qualitative_evaluations=evaluated,
            source_images=[sr.SourceImageForMeasurementGroup(*self._image)],
        )

    def _region(self, kind: sr.GraphicTypeValues, points: list[tuple[float, float]]) -> sr.ImageRegion:
        for point in points:
            for value, side in zip(point, self._size, strict=True):
                if not 0 <= value <= (np.inf if side is None else side):
                    raise FrameError(f"({point[0]:g}, {point[1]:g}) lies outside the DICOM image")
        return sr.ImageRegion(kind, np.array(points, np.float64), sr.SourceImageForRegion(*self._image))


def _texts(signature: Signature) -> list[sr.TextContentItem]:
    """TID 1501 has codes for what is evaluated, and no template for a comment; it may be extended."""
    entry = f"{signature.number}:{signature.hash}, {signature.at}"
    # DICOM takes control characters but line ends for changes of character set.
    comment = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in signature.comment)
    texts = [(LEDGER_ENTRY, entry), *([(codes.DCM.Comment, comment)] if comment else [])]
    return [sr.TextContentItem(name, text, sr.RelationshipTypeValues.CONTAINS) for name, text in texts]


def _probability(value: float) -> sr.Measurement:
    return sr.Measurement(codes.DCM.Probability, value, codes.UCUM.NoUnits)


def _yes_no(value: bool) -> Code:
    return codes.cid230.Yes if value else codes.cid230.No
