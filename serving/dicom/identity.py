"""Under whose name a document about an image is written, and what its equipment says; reports and pictures share it.

Without a context it is the pseudonymous identity of `serving.dicom.deidentify.DicomSource`: no patient, salted UIDs.
With the original's header, fetched from an archive for this one purpose, it is the real patient and study, so that the
archive files the document beside the image.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import highdicom
import pydicom
from pydicom.valuerep import DA, TM

from serving.dicom.deidentify import DicomSource
from serving.errors import DicomContextError

NAME = "CSR"
NOTICE = "research use only"
UTF8 = "ISO_IR 192"
_TYPE_2 = (  # attributes of patient and study that must be there, if empty
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_LAST_GROUP = 0x0040  # patient and study are described in groups 0008 to 0040; pixels and their kin come after


@dataclass(frozen=True)
class Algorithm:
    """What computed a reading.

    Args:
        version: the bundle's version.
        digest: the bundle's SHA-256 in hexadecimal digits.
    """

    version: str
    digest: str

    def equipment(self) -> dict[str, Any]:
        """As highdicom's documents take it."""
        return {
            "manufacturer": NAME,
            "manufacturer_model_name": f"{NAME}, {NOTICE}",
            "software_versions": self.version[:64],  # LO
            "device_serial_number": self.digest[:64],
        }


def original(source: DicomSource, context: pydicom.Dataset | None) -> pydicom.Dataset:
    """The image that a document is about, as highdicom takes it: its identity and its patient's and study's attributes.

    Raises:
        DicomContextError: the context is the header of another image, or cannot be copied.
    """
    if context is None:
        return _pseudonymous(source)
    with _copying(context):
        kept = pydicom.Dataset()
        for element in context[0x00080000 : (_LAST_GROUP + 1) << 16]:  # decoded from the character set it came in
            if not element.tag.is_private:
                kept.add(element)
        kept.SpecificCharacterSet = UTF8
        if missing := [name for name in _IDENTITY if not kept.get(name)]:
            raise DicomContextError(f"the original's header has no {missing[0]}: fetch it again")
        _check_same("SOPClassUID", source.sop_class_uid, kept.SOPClassUID)
        _check_same("Rows", source.rows, context.get("Rows"))
        _check_same("Columns", source.columns, context.get("Columns"))
    return _completed(kept)


@contextmanager
def _copying(context: pydicom.Dataset | None) -> Iterator[None]:
    """Archives hold values that DICOM forbids; pydicom and highdicom raise many types for them, and quote them."""
    try:
        yield
    except DicomContextError:
        raise
    except Exception as error:
        if context is None:
            raise
        raise DicomContextError(
            f"the original's header cannot be copied ({type(error).__name__}): it has a value that DICOM forbids"
        ) from None


def to_bytes(make: Any, context: pydicom.Dataset | None, at: datetime) -> bytes:
    """Makes a document and writes it as a file.

    Args:
        make: gives the document, a highdicom SOP instance.
        context: None if a failure would be our own.
        at: when it was made; highdicom would take the clock's word.

    Raises:
        DicomContextError: a value of the context cannot be written.
    """
    buffer = io.BytesIO()
    with _copying(context):
        document: highdicom.base.SOPClass = make()
        document.InstanceCreationDate, document.InstanceCreationTime = DA(at.date()), TM(at.time())
        document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _pseudonymous(source: DicomSource) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = source.sop_class_uid, source.instance_uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = source.study_uid, source.series_uid
    dataset.PatientSex, dataset.PatientAge = source.patient_sex, source.patient_age
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "CSR: allow-list, salted UIDs (after PS3.15 Annex E)"
    return _completed(dataset)


def _completed(dataset: pydicom.Dataset) -> pydicom.Dataset:
    for name in _TYPE_2:
        if name not in dataset:
            setattr(dataset, name, None)
    return dataset


def _check_same(name: str, expected: object, found: object) -> None:
    if expected is not None and found is not None and found != expected:
        raise DicomContextError(f"{name} of the original's header is not that of the image which was read")
