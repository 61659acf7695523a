"""Secondary captures: the pixels, what is said about them, and under whose name."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest

from serving.dicom.capture import secondary_capture
from serving.dicom.deidentify import deidentify
from serving.dicom.identity import Algorithm
from serving.errors import DicomContextError
from tests.serving.dicom.files import SALT, dataset, read, written

ALGORITHM = Algorithm("12", "ab" * 32)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def captured(original: pydicom.Dataset, picture: np.ndarray = PICTURE, context: pydicom.Dataset | None = None, **given):
    source = deidentify(written(original), SALT)
    description = given.get("description", "similarity to nodule")
    return source, read(secondary_capture(source, picture, description, ALGORITHM, NOW, context))


def test_the_pixels_are_the_pictures():
    _, capture = captured(dataset())
    np.testing.assert_array_equal(capture.pixel_array, PICTURE)
    assert (capture.PhotometricInterpretation, capture.SOPClassUID) == ("RGB", "1.2.840.10008.5.1.4.1.1.7")


def test_an_odd_number_of_bytes_is_padded():
    _, capture = captured(dataset(), PICTURE[:5, :7])
    np.testing.assert_array_equal(capture.pixel_array, PICTURE[:5, :7])
    assert len(capture.PixelData) % 2 == 0


def test_it_says_what_it_is_derived_from_and_by_what():
    source, capture = captured(dataset())
    assert capture.DerivationDescription.startswith("similarity to nodule; CSR 12, bundle sha256:abab")
    assert capture.DerivationDescription.endswith("research use only")
    assert "research use only" in capture.SeriesDescription
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.instance_uid
    assert list(capture.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
    assert (capture.SoftwareVersions, capture.DeviceSerialNumber) == ("12", "ab" * 32)
    assert (capture.DateOfSecondaryCapture, capture.InstanceCreationDate) == ("20260102", "20260102")


def test_a_long_description_is_cut_and_the_notice_is_not():
    _, capture = captured(dataset(), description="x" * 3000)
    assert len(capture.DerivationDescription) == 1024
    assert capture.DerivationDescription.endswith("research use only")


@pytest.mark.parametrize(("said", "expected"), [("NO", "NO"), (None, None)])
def test_burned_in_annotation_is_claimed_absent_only_where_the_original_does(said, expected):
    _, capture = captured(dataset(BurnedInAnnotation=said))
    assert capture.get("BurnedInAnnotation") == expected


def test_spacing_is_given_where_the_picture_has_the_images_size():
    assert list(captured(dataset())[1].PixelSpacing) == [0.18, 0.18]
    assert "PixelSpacing" not in captured(dataset(), PICTURE[:30])[1]
    assert "PixelSpacing" not in captured(dataset(PixelSpacing=None))[1]


@pytest.mark.parametrize("orientation", [["L", "F"], ["AL", "FP"], None])
def test_orientation_is_the_originals_or_unknown(orientation):
    _, capture = captured(dataset(PatientOrientation=orientation))
    assert (list(capture.PatientOrientation) if capture.PatientOrientation else None) == orientation


@pytest.mark.parametrize(
    ("part", "laterality", "of_image", "expected"),
    [("HAND", "R", None, "R"), ("HAND", None, "L", "L"), ("CHEST", None, "U", "absent"), (None, None, None, "")],
)
def test_laterality_is_the_originals(part, laterality, of_image, expected):
    _, capture = captured(dataset(BodyPartExamined=part, Laterality=laterality, ImageLaterality=of_image))
    assert (capture.get("Laterality", "absent") or "") == expected
    assert capture.get("BodyPartExamined") == part


def test_without_a_context_it_names_nobody():
    original = dataset()
    source, capture = captured(original)
    assert (capture.StudyInstanceUID, capture.PatientID, str(capture.PatientName)) == (source.study_uid, "", "")
    assert capture.PatientIdentityRemoved == "YES"


def test_with_a_context_it_is_the_patients():
    original = dataset()
    _, capture = captured(original, context=read(written(original)))
    for name in ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber", "StudyDate", "StudyDescription"):
        assert capture[name].value == original[name].value, name
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert capture.SeriesInstanceUID != original.SeriesInstanceUID
    assert "PatientIdentityRemoved" not in capture


def test_the_header_of_another_image_is_refused():
    with pytest.raises(DicomContextError, match="Rows"):
        captured(dataset(), context=dataset(Rows=61))


@pytest.mark.parametrize("picture", [PICTURE[..., 0], PICTURE[..., :2], PICTURE.astype(np.float32)])
def test_only_colour_pictures_of_bytes_are_taken(picture):
    with pytest.raises(ValueError, match="uint8"):
        captured(dataset(), picture)
