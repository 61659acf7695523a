"""DICOM files made in the test, and ways to look into what is written about them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

SALT = b"sixteen bytes or more of salt"
PIXELS = (np.arange(60 * 80, dtype=np.uint16) * 7 % 4096).reshape(60, 80)


def dataset(**attributes: Any) -> FileDataset:
    """A chest X-ray of 80×60 pixels with all that one has; None removes an attribute."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    known = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "PatientName": "Müller^Jörg",
        "PatientID": "P-4711",
        "PatientBirthDate": "19550102",
        "PatientSex": "M",
        "PatientAge": "068Y",
        "StudyDate": "20240506",
        "StudyTime": "101112",
        "StudyDescription": "Thorax für Müller",
        "AccessionNumber": "A-99",
        "StudyID": "S-1",
        "ReferringPhysicianName": "Överby^Eva",
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "ImageLaterality": "U",
        "Manufacturer": "Maker",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "ImagerPixelSpacing": [0.2, 0.2],
        "PixelSpacing": [0.18, 0.18],
        "BurnedInAnnotation": "NO",
        "Rows": PIXELS.shape[0],
        "Columns": PIXELS.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": PIXELS.tobytes(),
    }
    for name, value in (known | attributes).items():
        if value is not None:
            setattr(made, name, value)
    return made


def written(given: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    given.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read(data: bytes) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(data))


def items(node: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """Every content item of a report, depth first."""
    for item in node.get("ContentSequence", []):
        yield item
        yield from items(item)


def name_of(item: pydicom.Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def value_of(item: pydicom.Dataset) -> Any:
    """A content item's value, whatever its type."""
    match item.ValueType:
        case "CODE":
            return item.ConceptCodeSequence[0].CodeMeaning
        case "NUM":
            return float(item.MeasuredValueSequence[0].NumericValue)
        case "TEXT":
            return item.TextValue
        case "PNAME":
            return str(item.PersonName)
        case "UIDREF":
            return item.UID
        case "SCOORD":
            return item.GraphicType, [float(each) for each in item.GraphicData]
        case "IMAGE":
            return item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        case other:
            raise AssertionError(other)
