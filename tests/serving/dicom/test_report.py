"""Structured reports: what is in them, under whose name they are written, and that they read back."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime

import highdicom
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.config import disable_value_validation
from pydicom.uid import UID, UID_dictionary

from serving.dicom.deidentify import DicomSource, deidentify
from serving.dicom.report import (
    Algorithm,
    ClassProbability,
    Finding,
    ReaderBox,
    Reading,
    Signature,
    class_code,
    concept_code,
    structured_report,
)
from serving.errors import DicomContextError, FrameError
from tests.serving.dicom.files import SALT, dataset, items, name_of, read, value_of, written

ALGORITHM = Algorithm("12", "ab" * 32)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
READING = Reading(
    findings=(
        Finding("nodule", 0.8812345678901234, peak=(3.5, 4.25)),
        Finding("Erguß", 1e-9, verdict="rejected"),
        Finding("mass", 0.6, verdict="confirmed", peak=(5, 6)),
        Finding("scar", 0.7, verdict="confirmed"),
    ),
    classes=(ClassProbability("sick", 0.7, predicted=True), ClassProbability("healthy", 0.3)),
    boxes=(
        ReaderBox(1, 2, 30, 40.5, "focus"),
        ReaderBox(0, 0, 80, 60, "ignore"),
        ReaderBox(4, 5, 10, 12, "finding", "mass"),
    ),
    abstains=True,
    fit_score=3.25,
    misfits=("layout", "body_part"),
    reader="reader-7",
)


@pytest.fixture(scope="module")
def original() -> pydicom.FileDataset:
    return dataset()


@pytest.fixture(scope="module")
def source(original) -> DicomSource:
    return deidentify(written(original), SALT)


def groups(report: pydicom.Dataset) -> dict[str, dict[str, list]]:
    """Each measurement group by its tracking identifier: its items' values by their names."""
    found = {}
    for item in items(report):
        if name_of(item) == "Measurement Group":
            values = defaultdict(list)
            for child in item.ContentSequence:
                values[name_of(child)].append(value_of(child))
            found[values["Tracking Identifier"][0]] = values
    return found


def test_a_frame_of_several_is_named_wherever_its_image_is(source):
    report = read(structured_report(replace(source, frame=2), READING, ALGORITHM, NOW))
    references = [
        item.ReferencedSOPSequence[0] for item in items(report) if getattr(item, "ReferencedSOPSequence", None)
    ]
    assert references and all(reference.ReferencedFrameNumber == 2 for reference in references)


def test_it_says_what_the_reading_says(source):
    report = read(structured_report(source, READING, ALGORITHM, NOW))
    found = groups(report)
    assert list(found) == [
        "assessment",
        "sick",
        "healthy",
        "nodule",
        "Erguß",
        "mass",
        "scar",
        "box 1",
        "box 2",
        "box 3",
    ]
    assert found["assessment"]["Model abstains"] == ["Yes"]
    assert found["assessment"]["Unlikeness to training images, limit 1"] == [3.25]
    assert found["assessment"]["Image is like the training images"] == ["No"]
    assert found["assessment"]["Reason against reading the image"] == [
        "Layout unlike the training images",
        "Another body part than the training images",
    ]
    assert [found[name]["Probability"][0] for name in ("sick", "healthy", "Erguß")] == [0.7, 0.3, 1e-9]
    assert math.isclose(found["nodule"]["Probability"][0], 0.8812345678901234, rel_tol=1e-13)
    assert [found[name]["Predicted"] for name in ("sick", "healthy")] == [["Yes"], ["No"]]
    verdicts = [found[name]["Reader's verdict"] for name in ("nodule", "Erguß", "mass", "scar", "box 3")]
    assert verdicts == [["No verdict"], ["Rejected"], ["Confirmed"], ["Confirmed"], ["Confirmed"]]
    assert "Image Region" not in found["scar"]  # it was confirmed without its place
    assert [found[name]["Finding"] for name in ("nodule", "Erguß", "sick")] == [["nodule"], ["Erguß"], ["sick"]]
    assert found["nodule"]["Image Region"] == [("POINT", [3.5, 4.25])]
    assert "Image Region" not in found["Erguß"]
    assert found["box 1"]["Image Region"] == [("POLYLINE", [1, 2, 30, 2, 30, 40.5, 1, 40.5, 1, 2])]
    kinds = [found[name]["Finding"][0] for name in ("box 1", "box 2", "box 3")]
    assert kinds == ["Region to focus on", "Region to ignore", "mass"]
    assert found["box 3"]["Image Region"] == [("POLYLINE", [4, 5, 10, 5, 10, 12, 4, 12, 4, 5])]
    assert found["box 3"]["Finding category"] == ["Reader's place of a finding"]
    assert found["box 1"]["Finding category"] == found["box 2"]["Finding category"] == ["Reader's region"]
    for name, values in found.items():
        if not name.startswith("box"):
            assert (values["Algorithm Name"], values["Algorithm Version"]) == (["CSR"], ["12"])
            assert values["Algorithm Parameters"] == [f"bundle sha256:{'ab' * 32}"]


@pytest.mark.parametrize(("decision", "said"), [("keep", "with the reader's corrections"), ("revert", "as predicted")])
def test_it_says_what_was_signed(source, decision, said):
    comment = "Kerley-B-Linien?\nno\x1bescape \\ 漢字"
    signature = Signature(decision, comment, 17, "ab" * 32, "2026-01-02T03:04:05+00:00")
    data = structured_report(source, replace(READING, signature=signature), ALGORITHM, NOW)
    whole = groups(read(data))["assessment"]
    assert whole["Reader's decision"] == [f"Signed {said}"]
    assert whole["Comment"] == [comment.replace("\x1b", " ")]
    assert whole["Entry of the audit ledger"] == [f"17:{'ab' * 32}, 2026-01-02T03:04:05+00:00"]
    report = highdicom.sr.srread(io.BytesIO(data))
    assert len(report.content.get_image_measurement_groups()) == 5
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("FINAL", "UNVERIFIED")
    short = groups(
        read(structured_report(source, replace(READING, signature=replace(signature, comment="")), ALGORITHM, NOW))
    )
    assert "Comment" not in short["assessment"] and "Reader's decision" in short["assessment"]
    assert "Reader's decision" not in groups(read(structured_report(source, READING, ALGORITHM, NOW)))["assessment"]


def test_it_says_who_observed(source):
    report = read(structured_report(source, READING, ALGORITHM, NOW))
    said = {name_of(item): value_of(item) for item in report.ContentSequence if item.ValueType != "CONTAINER"}
    assert said["Person Observer Name"] == "reader-7^"
    assert said["Device Observer Name"] == "CSR"
    assert said["Device Observer Serial Number"] == "ab" * 32
    assert UID(said["Device Observer UID"]).is_valid
    alone = read(structured_report(source, Reading(READING.findings, READING.classes), ALGORITHM, NOW))
    assert "Person Observer Name" not in {name_of(item) for item in alone.ContentSequence}


def test_highdicom_reads_it_back(source):
    data = structured_report(source, READING, ALGORITHM, NOW)
    report = highdicom.sr.srread(io.BytesIO(data))
    assert isinstance(report, highdicom.sr.ComprehensiveSR)
    planar = report.content.get_planar_roi_measurement_groups()
    whole = report.content.get_image_measurement_groups()
    assert [len(planar), len(whole)] == [5, 5]
    assert [each.finding_type.scheme_designator for each in planar + whole] == ["99CSR"] * 10
    assert report.get_evidence() == [
        (source.study_uid, source.series_uid, source.instance_uid, source.sop_class_uid),
    ]
    assert (report.ContentDate, report.InstanceCreationDate) == ("20260102", "20260102")
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert "research use only" in report.SeriesDescription


def test_without_a_context_it_names_nobody(source, original):
    data = structured_report(source, READING, ALGORITHM, NOW)
    report = read(data)
    assert (report.StudyInstanceUID, report.PatientID, str(report.PatientName)) == (source.study_uid, "", "")
    assert (report.PatientSex, report.PatientAge, report.PatientIdentityRemoved) == ("M", "068Y", "YES")
    for secret in ("Müller", "P-4711", "A-99", "Överby", "19550102", "20240506", original.StudyInstanceUID):
        assert secret.encode() not in data
        assert secret.encode("latin-1") not in data


def test_with_a_context_it_is_the_patients(source, original):
    report = read(structured_report(source, READING, ALGORITHM, NOW, context=read(written(original))))
    for name in ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber", "StudyDate", "StudyDescription"):
        assert report[name].value == original[name].value, name
    assert report.SeriesInstanceUID not in (original.SeriesInstanceUID, source.series_uid)
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert "PatientIdentityRemoved" not in report
    (_, series, instance, _) = highdicom.sr.ComprehensiveSR.from_dataset(report).get_evidence()[0]
    assert (series, instance) == (original.SeriesInstanceUID, original.SOPInstanceUID)


def test_private_attributes_and_pixels_of_the_context_stay_behind(source, original):
    context = read(written(original))
    context.private_block(0x0011, "Secret maker", create=True).add_new(1, "LO", "SECRET")
    report = read(structured_report(source, READING, ALGORITHM, NOW, context=context))
    assert "PixelData" not in report
    assert not [element for element in report if element.tag.is_private]


def test_a_header_with_little_in_it_is_enough(source, original):
    context = pydicom.Dataset()
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        setattr(context, name, original[name].value)
    report = read(structured_report(source, READING, ALGORITHM, NOW, context=context))
    assert (report.StudyInstanceUID, report.PatientID) == (original.StudyInstanceUID, "")


@pytest.mark.parametrize(
    ("name", "value"), [("Rows", 61), ("Columns", 79), ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7")]
)
def test_the_header_of_another_image_is_refused(source, original, name, value):
    context = read(written(original))
    setattr(context, name, value)
    with pytest.raises(DicomContextError, match=name) as raised:
        structured_report(source, READING, ALGORITHM, NOW, context=context)
    assert (raised.value.code, raised.value.status) == ("dicom_context_differs", 409)


def test_a_header_that_cannot_be_copied_is_refused_without_quoting_it(source, original):
    with disable_value_validation():
        context = read(written(original))
        context["StudyDate"]._value = "Müller's day"
    with pytest.raises(DicomContextError, match="cannot be copied") as raised:
        structured_report(source, READING, ALGORITHM, NOW, context=context)
    assert "Müller" not in str(raised.value)


@pytest.mark.parametrize("peak", [(-0.5, 1.0), (80.5, 1.0), (1.0, 60.5), (math.nan, 1.0)])
def test_a_peak_outside_the_image_is_refused(source, peak):
    with pytest.raises(FrameError, match="outside"):
        structured_report(source, Reading((Finding("nodule", 0.5, peak=peak),), ()), ALGORITHM, NOW)


def test_a_box_outside_the_image_is_refused(source):
    with pytest.raises(FrameError, match="outside"):
        structured_report(source, Reading((), (), (ReaderBox(1, 1, 81, 2, "focus"),)), ALGORITHM, NOW)


@pytest.mark.parametrize("reader", ["", "Jane Doe", "a^b", "x" * 64])
def test_a_reader_is_a_pseudonym(reader):
    with pytest.raises(ValueError, match="pseudonym"):
        Reading((), (), reader=reader)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_probability_is_one(probability):
    with pytest.raises(ValueError, match="nodule"):
        Reading((Finding("nodule", probability),), ())


def test_codes_depend_on_the_name_alone():
    assert concept_code("nodule").value == "C001A708AC740FA8"  # reports that are out there hold it
    assert class_code("nodule").value == "T001A708AC740FA8"
    assert concept_code("Ergu\u00df e\u0301").value == concept_code("Ergu\u00df \u00e9").value


@given(st.text(min_size=1, max_size=200), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_any_name_and_probability_can_be_reported(name, probability):
    source = DicomSource("1.2.840.10008.5.1.4.1.1.1.1", "2.25.1", "2.25.2", "2.25.3")
    code = concept_code(name)
    assert len(code.value) == 16 and len(code.meaning) <= 64
    reading = Reading((Finding(name, probability),), ())
    report = highdicom.sr.srread(io.BytesIO(structured_report(source, reading, ALGORITHM, NOW)))
    (measured,) = report.content.get_image_measurement_groups()[1].get_measurements()
    assert measured.value == pytest.approx(probability, rel=1e-9)


IMAGES = [uid for uid, (name, *_) in UID_dictionary.items() if "Image Storage" in name]


def test_every_class_that_is_let_in_can_be_reported_on():
    made = dataset()
    reported = 0
    for uid in IMAGES:
        made.SOPClassUID = uid
        try:
            source = deidentify(written(made), SALT)
        except Exception as error:
            assert type(error).__name__ == "IncompleteDicomError"
            continue
        structured_report(source, READING, ALGORITHM, NOW, context=made)
        reported += 1
    assert reported > 30
