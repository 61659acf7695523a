"""A picture (a similarity map over the image) as a DICOM Secondary Capture, which every archive's viewer shows."""

from __future__ import annotations

from datetime import datetime

import highdicom
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from serving.dicom.deidentify import DicomSource
from serving.dicom.identity import NAME, NOTICE, UTF8, Algorithm, original, to_bytes

SERIES_NUMBER = 9902
_DERIVATION = 1024  # characters of ST


def secondary_capture(
    source: DicomSource,
    pixels: np.ndarray,
    description: str,
    algorithm: Algorithm,
    at: datetime,
    context: pydicom.Dataset | None = None,
) -> bytes:
    """Writes a picture as a DICOM file.

    Burned In Annotation is ``NO`` if the image's own header says so, else absent: this side adds no identity to the
    pixels, but cannot know what was in them before. Pixel Spacing is given where the picture has the image's size.

    Args:
        source: of the image that the picture was derived from.
        pixels: H×W×3 uint8, RGB.
        description: what is drawn, for people; names nobody.
        algorithm: what computed it.
        at: when, in the time zone that the archive's other objects are in.
        context: the image's own header from the archive that is to file the picture; None: a pseudonymous picture.

    Raises:
        DicomContextError: the context is the header of another image, or cannot be copied.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels: {pixels.dtype} of shape {pixels.shape} are not H×W×3 uint8")
    image = original(source, context)
    same_size = pixels.shape[:2] == (source.rows, source.columns)

    def make() -> highdicom.sc.SCImage:
        capture = highdicom.sc.SCImage.from_ref_dataset(
            image,
            pixel_array=pixels,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # must be given here, even where it is not known; set below
            pixel_spacing=source.pixel_spacing if same_size else None,  # type: ignore[arg-type]  # takes fractions
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            series_description=f"{NAME} picture, {NOTICE}",
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            content_date=DA(at.date()),
            content_time=TM(at.time()),
            specific_character_set=UTF8,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **algorithm.equipment(),
        )
        capture.copy_patient_and_study_information(image)
        capture.PatientOrientation = list(source.patient_orientation or ())
        sides = [side for side in (source.laterality, source.image_laterality) if side in ("R", "L")]
        if source.body_part is not None:
            capture.BodyPartExamined = source.body_part
        if sides or source.body_part is None:  # empty is for a part that may be one of a pair (PS3.3 C.7.3.1)
            capture.Laterality = sides[0] if sides else ""
        capture.ConversionType = "WSD"  # made by a workstation, not digitised
        capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = DA(at.date()), TM(at.time())
        origin = f"{NAME} {algorithm.version}, bundle sha256:{algorithm.digest}; {NOTICE}"
        capture.DerivationDescription = f"{description[: _DERIVATION - len(origin) - 2]}; {origin}"
        capture.SourceImageSequence = [_reference(image, source.frame)]
        if source.burned_in_annotation is not None:
            capture.BurnedInAnnotation = source.burned_in_annotation
        return capture

    return to_bytes(make, context, at)


def _reference(image: pydicom.Dataset, frame: int | None) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = image.SOPClassUID
    item.ReferencedSOPInstanceUID = image.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item
