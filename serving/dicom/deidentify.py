"""A DICOM file's bytes → the few attributes that may be kept of it. An allow-list: what is not named here is dropped.

After the Basic Profile of PS3.15 Annex E, with its option to retain patient characteristics as far as sex and age (90
for everyone over 89). Identifiers are replaced by salted ones. A value is kept only if it is one of the standard's
terms or a number in a plausible range, so a name typed into Body Part Examined does not pass, though its form is right.
Values are read as raw bytes: pydicom would warn about a malformed one by quoting it into the log.

Not covered here: what is burned into the pixels, except that a file which admits it is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pydicom
from pydantic import ConfigDict, TypeAdapter
from pydicom.dataelem import RawDataElement
from pydicom.uid import UID

from csr.data.limits import check_structure
from csr.data.orientation import AS_STORED
from csr.errors import ConfigError, ImageError
from serving.dicom.terms import BODY_PARTS, LATERALITIES, MODALITIES, PHOTOMETRIC, SEXES, VIEWS
from serving.errors import BurnedInAnnotationError, IncompleteDicomError, UnreadableImageError

SALT_BYTES = 16
OLDEST = 89  # years; older people are few enough to be found by their age
MAX_SPACING = 100.0  # millimetres
MAX_SIDE = 65535  # US
UID_PATTERN = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")  # PS3.5 9.1, but for leading zeros, which are common
_AGE = re.compile(r"([0-9]{3})([DWMY])")
_NUMBER = re.compile(r"[0-9+.eE-]{1,16}")
_AXES = ("AP", "RL", "HF")  # opposite directions of the body


@dataclass(frozen=True)
class DicomSource:
    """What is known of the DICOM image that a study came from. No value in it names a patient, a person or a place.

    Args:
        sop_class_uid: the standard's UID of the kind of image.
        study_uid, series_uid, instance_uid: salted, see `pseudonymous_uid`; never those of the file.
        frame_of_reference_uid: salted too.
        rows, columns: the image's size in pixels.
        pixel_spacing, imager_pixel_spacing, nominal_scanned_pixel_spacing: millimetres between rows, between columns.
        modality, body_part, view_position, photometric_interpretation: the standard's terms.
        patient_orientation: where the rows and the columns point, for example ("L", "F").
        laterality, image_laterality: ``R``, ``L``, ``B`` or ``U``.
        patient_sex: ``M``, ``F`` or ``O``.
        patient_age: in DICOM's form, ``047Y``; ``090Y`` for everyone older than `OLDEST`.
        burned_in_annotation: ``NO`` if the file says that its pixels identify nobody, None if it says nothing.
        turn: what brought the image upright (`csr.data.orientation`), None if nothing had to.
        frame: which one was read, from 1; None of a file of but one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    sop_class_uid: str
    study_uid: str
    series_uid: str
    instance_uid: str
    frame_of_reference_uid: str | None = None
    rows: int | None = None
    columns: int | None = None
    pixel_spacing: tuple[float, float] | None = None
    imager_pixel_spacing: tuple[float, float] | None = None
    nominal_scanned_pixel_spacing: tuple[float, float] | None = None
    modality: str | None = None
    body_part: str | None = None
    view_position: str | None = None
    photometric_interpretation: str | None = None
    patient_orientation: tuple[str, str] | None = None
    laterality: str | None = None
    image_laterality: str | None = None
    patient_sex: str | None = None
    patient_age: str | None = None
    burned_in_annotation: str | None = None
    turn: int | None = None
    frame: int | None = None

    def to_json(self) -> str:
        """As JSON text, for a store."""
        return TypeAdapter(DicomSource).dump_json(self, exclude_none=True).decode()

    @classmethod
    def from_json(cls, text: str) -> DicomSource:
        """The inverse of `to_json`.

        Raises:
            ValueError: it is not what `to_json` wrote.
        """
        return TypeAdapter(DicomSource).validate_json(text)


def deidentify(data: bytes, salt: bytes) -> DicomSource | None:
    """What may be kept of a file; None if it is not DICOM.

    Args:
        data: the file's bytes.
        salt: secret and the same for ever: another one gives other pseudonyms.

    Raises:
        ConfigError: the salt is shorter than `SALT_BYTES`.
        BurnedInAnnotationError: the file says that its pixels identify the patient.
        IncompleteDicomError: its class, study, series or instance UID is missing or is none.
        UnreadableImageError: it is damaged.
    """
    if len(salt) < SALT_BYTES:
        raise ConfigError(f"the salt of DICOM pseudonyms has {len(salt)} bytes; give at least {SALT_BYTES} random ones")
    if data[128:132] != b"DICM":
        return None
    elements = _read(data)
    if "YES" in (_text(elements["BurnedInAnnotation"]) or "").upper().split("\\"):
        raise BurnedInAnnotationError(
            "the DICOM image has burned-in annotation (0028,0301): remove it from the pixels first"
        )
    known = {field: check(elements[keyword]) for field, (keyword, check) in _KEPT.items()}
    known |= {field: _pseudonym(elements[keyword], salt) for field, keyword in _IDENTIFIERS.items()}
    for field, name in _REQUIRED.items():
        if known[field] is None:
            raise IncompleteDicomError(f"the DICOM file has no valid {name}: send it as the archive holds it")
    return DicomSource(**known)


def read_as(source: DicomSource, turn: int, frame: int | None) -> DicomSource:
    """The source with how its pixels were read."""
    return replace(source, turn=None if turn == AS_STORED else turn, frame=frame)


def pseudonymous_uid(uid: str, salt: bytes) -> str:
    """HMAC-SHA256(salt, uid) as a UUID-derived UID (PS3.5 B.2): ``2.25.`` and a decimal integer."""
    digest = hmac.new(salt, uid.encode(), hashlib.sha256).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def _read(data: bytes) -> dict[str, RawDataElement | None]:
    """The elements that are asked about, by keyword, unconverted."""
    keywords = [keyword for keyword, _ in _KEPT.values()] + [*_IDENTIFIERS.values(), "BurnedInAnnotation"]
    try:
        check_structure(data, "the DICOM file")
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(keywords))
        found = {keyword: dataset.get_item(keyword) for keyword in keywords}
    except ImageError as error:
        raise UnreadableImageError(str(error)) from None
    except Exception as error:  # pydicom raises many types for damaged files; their texts may quote the file
        raise UnreadableImageError(f"the DICOM file is damaged ({type(error).__name__})") from None
    return {keyword: each if isinstance(each, RawDataElement) else None for keyword, each in found.items()}


def _text(element: RawDataElement | None) -> str | None:
    """A value as the file holds it, without padding; None if there is none, or if it is not ASCII."""
    value = element.value if element is not None else None
    if not isinstance(value, bytes) or not value.isascii():
        return None
    return value.decode("ascii").strip(" \0") or None


def _one_of(terms: frozenset[str]) -> Callable[[RawDataElement | None], str | None]:
    def check(element: RawDataElement | None) -> str | None:
        text = _text(element)
        return text if text in terms else None

    return check


def _side(element: RawDataElement | None) -> int | None:
    value = element.value if element is not None else None
    if element is None or not isinstance(value, bytes) or len(value) != 2:
        return None
    return int.from_bytes(value, "little" if element.is_little_endian else "big") or None


def _spacing(element: RawDataElement | None) -> tuple[float, float] | None:
    texts = [each.strip() for each in (_text(element) or "").split("\\")]
    if len(texts) != 2 or not all(_NUMBER.fullmatch(each) for each in texts):
        return None
    try:
        rows, columns = map(float, texts)
    except ValueError:
        return None
    return (rows, columns) if 0 < rows <= MAX_SPACING and 0 < columns <= MAX_SPACING else None


def _age(element: RawDataElement | None) -> str | None:
    match = _AGE.fullmatch(_text(element) or "")
    if match is None:
        return None
    years = int(match[1]) * {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1}[match[2]]
    return match[0] if years < OLDEST + 1 else f"{OLDEST + 1:03d}Y"


def _orientation(element: RawDataElement | None) -> tuple[str, str] | None:
    """Two directions, each of at most one letter an axis of the body."""
    directions = [each.strip() for each in (_text(element) or "").split("\\")]
    if len(directions) != 2 or not all(directions):
        return None
    for direction in directions:
        axes = [axis for letter in direction for axis in _AXES if letter in axis]
        if len(axes) != len(direction) or len(set(axes)) != len(axes):
            return None
    return directions[0], directions[1]


def _image_class(element: RawDataElement | None) -> str | None:
    """A storage class for images of people, of the standard and not retired; a private one might tell the hospital."""
    uid = UID(_text(element) or "", validation_mode=pydicom.config.IGNORE)
    standard = uid.type == "SOP Class" and not uid.is_retired
    human = "Image Storage" in uid.name and not uid.keyword.startswith(("DICOS", "EddyCurrent"))
    return str(uid) if standard and human else None


def _pseudonym(element: RawDataElement | None, salt: bytes) -> str | None:
    uid = _text(element)
    return pseudonymous_uid(uid, salt) if uid is not None and UID_PATTERN.fullmatch(uid) else None


_KEPT: dict[str, tuple[str, Callable[[RawDataElement | None], Any]]] = {
    "sop_class_uid": ("SOPClassUID", _image_class),
    "rows": ("Rows", _side),
    "columns": ("Columns", _side),
    "pixel_spacing": ("PixelSpacing", _spacing),
    "imager_pixel_spacing": ("ImagerPixelSpacing", _spacing),
    "nominal_scanned_pixel_spacing": ("NominalScannedPixelSpacing", _spacing),
    "modality": ("Modality", _one_of(MODALITIES)),
    "body_part": ("BodyPartExamined", _one_of(BODY_PARTS)),
    "view_position": ("ViewPosition", _one_of(VIEWS)),
    "photometric_interpretation": ("PhotometricInterpretation", _one_of(PHOTOMETRIC)),
    "patient_orientation": ("PatientOrientation", _orientation),
    "laterality": ("Laterality", _one_of(LATERALITIES)),
    "image_laterality": ("ImageLaterality", _one_of(LATERALITIES)),
    "patient_sex": ("PatientSex", _one_of(SEXES)),
    "patient_age": ("PatientAge", _age),
    "burned_in_annotation": ("BurnedInAnnotation", _one_of(frozenset({"NO"}))),
}
_IDENTIFIERS = {
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "instance_uid": "SOPInstanceUID",
    "frame_of_reference_uid": "FrameOfReferenceUID",
}
_REQUIRED = {
    "sop_class_uid": "SOPClassUID (of an image)",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "instance_uid": "SOPInstanceUID",
}
