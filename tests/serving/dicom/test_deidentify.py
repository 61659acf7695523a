"""What is kept of an uploaded DICOM file, what is refused, and that nothing else ever gets through."""

from __future__ import annotations

import io
import json
import warnings
import zlib
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.config import disable_value_validation
from pydicom.datadict import DicomDictionary, dictionary_keyword, dictionary_VR
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RawDataStorage,
)

from csr.errors import ConfigError
from serving.dicom.capture import secondary_capture
from serving.dicom.deidentify import DicomSource, deidentify, pseudonymous_uid
from serving.dicom.report import Algorithm, ClassProbability, Finding, Reading, structured_report
from serving.errors import BurnedInAnnotationError, IncompleteDicomError, ServingError, UnreadableImageError
from tests.serving.dicom.files import SALT, dataset, written

MARKER = "ZORRO"
TEXT_VRS = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
CASES = settings(deadline=None, max_examples=150)
WHOLE = written(dataset())
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def source(**attributes) -> DicomSource:
    found = deidentify(written(dataset(**attributes)), SALT)
    assert found is not None
    return found


def test_what_a_report_needs_is_kept():
    kept = asdict(source())
    uids = [kept.pop(name) for name in ("study_uid", "series_uid", "instance_uid")]
    assert kept == {
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
        "frame_of_reference_uid": None,
        "rows": 60,
        "columns": 80,
        "pixel_spacing": (0.18, 0.18),
        "imager_pixel_spacing": (0.2, 0.2),
        "nominal_scanned_pixel_spacing": None,
        "modality": "DX",
        "body_part": "CHEST",
        "view_position": "PA",
        "photometric_interpretation": "MONOCHROME2",
        "patient_orientation": ("L", "F"),
        "laterality": None,
        "image_laterality": "U",
        "patient_sex": "M",
        "patient_age": "068Y",
        "burned_in_annotation": "NO",
        "turn": None,
        "frame": None,
    }
    assert len(set(uids)) == 3


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_the_encoding_makes_no_difference(syntax):
    made = dataset()
    expected = deidentify(written(made), SALT)
    little = syntax != ExplicitVRBigEndian
    plain = pydicom.Dataset(made)
    plain.PixelData = None
    plain.file_meta = pydicom.dataset.FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    pydicom.dcmwrite(
        buffer, plain, enforce_file_format=True, little_endian=little, implicit_vr=syntax == ImplicitVRLittleEndian
    )
    assert deidentify(buffer.getvalue(), SALT) == expected


def test_other_bytes_are_not_dicom():
    assert deidentify(b"", SALT) is None
    assert deidentify(b"\x89PNG\r\n\x1a\n" + bytes(200), SALT) is None


def test_identifiers_are_salted_stable_and_uids():
    made = dataset(FrameOfReferenceUID="1.2.3")
    first, again = (deidentify(written(made), SALT) for _ in range(2))
    other = deidentify(written(made), b"another salt, as long as that")
    assert first == again
    assert first.frame_of_reference_uid == pseudonymous_uid("1.2.3", SALT)
    for field in ("study_uid", "series_uid", "instance_uid", "frame_of_reference_uid"):
        uid = getattr(first, field)
        assert pydicom.uid.UID(uid).is_valid and uid.startswith("2.25.")
        assert uid != getattr(other, field)


def test_a_salt_must_be_long():
    with pytest.raises(ConfigError, match="at least 16"):
        deidentify(written(dataset()), b"short")


@given(st.text("0123456789.", min_size=1, max_size=64), st.binary(min_size=16, max_size=64))
@CASES
def test_every_pseudonym_is_a_valid_uid(uid, salt):
    found = pydicom.uid.UID(pseudonymous_uid(uid, salt))
    assert found.is_valid
    assert found == pseudonymous_uid(uid, salt)


def test_json_and_back():
    kept = source()
    text = kept.to_json()
    assert DicomSource.from_json(text) == kept
    assert json.loads(text)["patient_orientation"] == ["L", "F"]
    with pytest.raises(ValueError, match="patient_name"):
        DicomSource.from_json(json.dumps(json.loads(text) | {"patient_name": "X"}))


@pytest.mark.parametrize("value", ["YES", "yes ", ["NO", "YES"]])
def test_burned_in_names_are_refused(value):
    with disable_value_validation():
        data = written(dataset(BurnedInAnnotation=value))
    with pytest.raises(BurnedInAnnotationError, match="burned-in") as raised:
        deidentify(data, SALT)
    assert (raised.value.code, raised.value.status) == ("burned_in_annotation", 422)


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_an_image_without_identity_is_refused(name):
    made = dataset()
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = made.SOPClassUID, "1.2"
    delattr(made, name)
    buffer = io.BytesIO()
    made.save_as(buffer)
    with pytest.raises(IncompleteDicomError, match=name) as raised:
        deidentify(buffer.getvalue(), SALT)
    assert (raised.value.code, raised.value.status) == ("incomplete_dicom", 422)


@pytest.mark.parametrize("uid", [RawDataStorage, "1.2.840.10008.5.1.4.1.1.6", "1.3.6.1.4.1.99999.7"])
def test_only_standard_image_classes_are_images(uid):
    with pytest.raises(IncompleteDicomError, match="SOPClassUID"):
        source(SOPClassUID=uid)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Modality", "modality", "DOE JANE"),
        ("BodyPartExamined", "body_part", "DOE JANE"),
        ("ViewPosition", "view_position", "JANE"),
        ("PatientSex", "patient_sex", "JANE"),
        ("PatientOrientation", "patient_orientation", ["JANE", "DOE"]),
        ("PatientOrientation", "patient_orientation", ["LL", "F"]),
        ("PatientOrientation", "patient_orientation", ["LR", "F"]),
        ("PatientOrientation", "patient_orientation", ["L", "F", "H"]),
        ("ImageLaterality", "image_laterality", "JANE"),
        ("PhotometricInterpretation", "photometric_interpretation", "JANE"),
        ("PixelSpacing", "pixel_spacing", ["19550102", "1"]),
        ("PixelSpacing", "pixel_spacing", ["0", "1"]),
        ("PixelSpacing", "pixel_spacing", ["0.1"]),
        ("FrameOfReferenceUID", "frame_of_reference_uid", "1.2.JANE"),
    ],
)
def test_a_name_in_an_allowed_attribute_is_dropped(name, field, value):
    with disable_value_validation():
        assert getattr(source(**{name: value}), field) is None


@pytest.mark.parametrize(
    ("age", "kept"),
    [("047Y", "047Y"), ("089Y", "089Y"), ("090Y", "090Y"), ("103Y", "090Y"), ("011M", "011M"), ("003D", "003D")],
)
def test_great_ages_are_one_group(age, kept):
    assert source(PatientAge=age).patient_age == kept


def test_a_malformed_value_is_not_quoted_anywhere(caplog):
    with disable_value_validation():
        data = written(dataset(BodyPartExamined="Jane Doe's chest", StudyInstanceUID="1.2.Jane"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(IncompleteDicomError) as raised:
            deidentify(data, SALT)
    assert "Jane" not in str(raised.value) + caplog.text


@given(st.data())
@CASES
def test_damaged_bytes_raise_serving_errors_only(data):
    whole = WHOLE
    cut = data.draw(st.integers(132, len(whole)))
    damaged = bytearray(whole[:cut])
    for position in data.draw(st.lists(st.integers(0, min(cut, 1200) - 1), max_size=8)):
        damaged[position] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = deidentify(bytes(damaged), SALT)
        except ServingError as error:
            assert error.status == 422
        else:
            assert found is None or isinstance(found, DicomSource)


@given(st.binary(max_size=400))
@CASES
def test_noise_raises_serving_errors_only(noise):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ServingError):
            deidentify(bytes(128) + b"DICM" + noise, SALT)


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr("csr.data.limits.MAX_INFLATED", 10_000)
    small = dataset(PixelData=None)
    small.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = written(small)
    start = 144 + int.from_bytes(head[140:144], "little")
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = head[:start] + deflate.compress(bytes(1_000_000)) + deflate.flush()
    with pytest.raises(UnreadableImageError, match="10,000 bytes"):
        deidentify(bomb, SALT)


@disable_value_validation()
def marked(private: int, nested: int) -> bytes:
    """An X-ray with the marker in every attribute of text there is, in private ones, and inside sequences."""
    made = dataset()
    kept = {"SpecificCharacterSet"}
    for tag in DicomDictionary:
        keyword, vr = dictionary_keyword(tag), dictionary_VR(tag)
        if tag > 0x00080000 and keyword and keyword not in kept and vr in TEXT_VRS:
            made.add_new(tag, vr, f"{MARKER} {tag & 0xFF:x}"[:16])
    for name in ("BodyPartExamined", "ViewPosition", "Laterality", "PatientAge", "ConversionType", "DeviceUID"):
        setattr(made, name, MARKER)
    block = made.private_block(0x0009 + 2 * private, f"{MARKER} creator", create=True)
    block.add_new(1, "LO", f"{MARKER} private")
    item = pydicom.Dataset()
    item.PatientName, item.PatientID = f"{MARKER}^{MARKER}", MARKER
    for _ in range(nested):
        outer = pydicom.Dataset()
        outer.OtherPatientIDsSequence = [item]
        item = outer
    made.OtherPatientIDsSequence = [item]
    made.RequestAttributesSequence = [item]
    made.file_meta.SourceApplicationEntityTitle = MARKER
    made.preamble = (MARKER.encode() * 26)[:128]
    return written(made)


@pytest.mark.parametrize(("private", "nested"), [(0, 0), (3, 4)])
def test_nothing_off_the_list_is_in_anything_that_is_written(private, nested):
    data = marked(private, nested)
    original = pydicom.dcmread(io.BytesIO(data))
    assert data.count(MARKER.encode()) > 700
    found = deidentify(data, SALT)
    reading = Reading((Finding("nodule", 0.5, peak=(3.0, 4.0)),), (ClassProbability("sick", 0.5, True),))
    algorithm = Algorithm("3", "ab" * 32)
    picture = np.zeros((60, 80, 3), np.uint8)
    texts = [
        found.to_json().encode(),
        structured_report(found, reading, algorithm, NOW),
        secondary_capture(found, picture, "map of nodule", algorithm, NOW),
    ]
    for text in texts:
        assert MARKER.encode() not in text.upper()
        for uid in (original.StudyInstanceUID, original.SeriesInstanceUID, original.SOPInstanceUID):
            assert uid.encode() not in text


TAGS = sorted(tag for tag in DicomDictionary if tag > 0x00080016 and dictionary_VR(tag) in TEXT_VRS | {"CS", "AS"})


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=12), st.text("ABCDEFGHIJ ", min_size=4, max_size=16))
@CASES
def test_random_text_in_random_attributes_does_not_get_through(tags, text):
    secret = f"Q{text.strip()}"[:16]
    made = dataset()
    with disable_value_validation():
        for tag in tags:
            made.add_new(tag, dictionary_VR(tag), secret)
        data = written(made)
    found = deidentify(data, SALT)
    assert secret not in found.to_json()
