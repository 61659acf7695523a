"""The way to an archive and back, with a real one: what we write is filed where it belongs and reads back."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import highdicom
import numpy as np
import pytest
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage, generate_uid

from csr.data.images import decode
from serving.dicom.capture import secondary_capture
from serving.dicom.deidentify import deidentify
from serving.dicom.node_config import NodeConfig, Secret
from serving.dicom.nodes import Node, Query
from serving.dicom.report import Algorithm, ClassProbability, Finding, ReaderBox, Reading, structured_report
from serving.errors import NodeError, TooLargeError, UnknownInstanceError
from tests.serving.dicom.files import PIXELS, SALT, dataset, read, written
from tests.serving.dicom.orthanc import OrthancAddress, OrthancError, orthanc_server

ALGORITHM = Algorithm("12", "ab" * 32)
READING = Reading(
    (Finding("nodule", 0.9, peak=(3.0, 4.0)), Finding("Erguß", 0.1, verdict="rejected")),
    (ClassProbability("sick", 0.8, predicted=True),),
    (ReaderBox(1, 2, 30, 40, "focus"),),
    reader="reader-7",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancAddress]:
    with orthanc_server(tmp_path_factory.mktemp("orthanc")) as address:
        yield address


@pytest.fixture
def config(archive: OrthancAddress, monkeypatch: pytest.MonkeyPatch) -> NodeConfig:
    monkeypatch.setenv("ORTHANC_AUTHORIZATION", archive.authorization)
    return NodeConfig(url=archive.url, headers={"Authorization": Secret(env="ORTHANC_AUTHORIZATION")})


@pytest.fixture
def node(config: NodeConfig) -> Node:
    return Node("archive", config)


def uids(made) -> tuple[str, str, str]:
    return str(made.StudyInstanceUID), str(made.SeriesInstanceUID), str(made.SOPInstanceUID)


def test_without_orthanc_these_tests_fail_and_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("tests.serving.dicom.orthanc.PLUGIN", tmp_path / "missing.so")
    with pytest.raises(OrthancError, match="apt-get install"), orthanc_server(tmp_path):
        pytest.fail("started")


def test_an_image_goes_there_is_found_and_comes_back(node):
    made = dataset(PatientID="P-1", StudyDate="20230401")
    node.store([written(made)])
    study, series, instance = uids(made)
    for query in (
        Query(study_uid=study),
        Query(patient_id="P-1"),
        Query(patient_id="P-1", study_date="20230401", modality="DX"),
        Query(study_date="20230331-20230402"),
        Query(study_date="-20230401"),
        Query(accession_number="A-99"),
    ):
        (found,) = node.search("studies", query)
        assert found.StudyInstanceUID == study
        (found,) = node.search("instances", query)
        assert uids(found) == (study, series, instance)
    assert node.search("studies", Query(patient_id="P-1", modality="MG")) == []
    assert node.search("instances", Query(accession_number="A-9")) == []
    assert node.search("instances", Query(study_uid=generate_uid())) == []
    data = node.retrieve(study, series, instance)
    back = read(data)
    assert back.PixelData == made.PixelData
    np.testing.assert_array_equal(back.pixel_array, PIXELS)
    assert back.file_meta.TransferSyntaxUID == made.file_meta.TransferSyntaxUID
    assert str(back.PatientName) == "Müller^Jörg"
    assert decode(data).shape == (60, 80, 1)
    assert deidentify(data, SALT) == deidentify(written(made), SALT)


def test_what_we_write_is_filed_beside_the_image(node):
    made = dataset()
    node.store([written(made)])
    study, series, instance = uids(made)
    source = deidentify(node.retrieve(study, series, instance), SALT)
    context = node.header(study, series, instance)
    assert "PixelData" not in context or not context.PixelData
    now = datetime.now(UTC)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    files = [
        structured_report(source, READING, ALGORITHM, now, context),
        secondary_capture(source, picture, "similarity to nodule", ALGORITHM, now, context),
    ]
    node.store(files)

    filed = {each.SOPClassUID: each for each in node.search("instances", Query(study_uid=study))}
    assert set(filed) == {made.SOPClassUID, ComprehensiveSRStorage, SecondaryCaptureImageStorage}
    assert len({each.SeriesInstanceUID for each in filed.values()}) == 3
    (one_study,) = node.search("studies", Query(study_uid=study))
    assert (one_study.PatientID, str(one_study.PatientName)) == ("P-4711", "Müller^Jörg")

    report = highdicom.sr.srread(io.BytesIO(node.retrieve(*uids(filed[ComprehensiveSRStorage]))))
    assert (report.StudyInstanceUID, report.PatientID, str(report.PatientName)) == (study, "P-4711", "Müller^Jörg")
    assert report.get_evidence() == [(study, series, instance, made.SOPClassUID)]
    (nodule,) = [
        each for each in report.content.get_planar_roi_measurement_groups() if each.finding_type.meaning == "nodule"
    ]
    assert nodule.get_measurements()[0].value == 0.9
    capture = read(node.retrieve(*uids(filed[SecondaryCaptureImageStorage])))
    np.testing.assert_array_equal(capture.pixel_array, picture)
    assert str(capture.PatientName) == "Müller^Jörg"


def test_pseudonymous_documents_are_filed_in_a_study_of_their_own(node):
    made = dataset(PatientID="P-2")
    source = deidentify(written(made), SALT)
    report = structured_report(source, READING, ALGORITHM, datetime.now(UTC))
    node.store([report])
    (found,) = node.search("studies", Query(study_uid=source.study_uid))
    assert str(found.get("PatientName") or "") == ""
    assert node.search("studies", Query(study_uid=str(made.StudyInstanceUID))) == []
    assert read(node.retrieve(*uids(read(report)))).PatientIdentityRemoved == "YES"


def test_results_are_limited_and_can_be_paged(node):
    study = generate_uid()
    node.store([written(dataset(StudyInstanceUID=study)) for _ in range(3)])
    query = Query(study_uid=study)
    pages = [node.search("instances", query, limit=2, offset=offset) for offset in (0, 2)]
    assert [len(page) for page in pages] == [2, 1]
    assert len({each.SOPInstanceUID for page in pages for each in page}) == 3


def test_what_is_not_there_is_unknown(node):
    made = dataset()
    for ask in (node.retrieve, node.header):
        with pytest.raises(UnknownInstanceError, match="archive: has no instance") as raised:
            ask(*uids(made))
        assert raised.value.status == 404


def test_an_image_over_the_limit_is_refused(config, node):
    made = dataset()
    node.store([written(made)])
    small = Node("archive", config, answer_bytes=5000)
    with pytest.raises(TooLargeError, match="5,000 bytes"):
        small.retrieve(*uids(made))


def test_without_the_right_header_the_archive_refuses(archive, monkeypatch):
    monkeypatch.setenv("ORTHANC_AUTHORIZATION", "Basic d3Jvbmc6d3Jvbmc=")
    node = Node("archive", NodeConfig(url=archive.url, headers={"Authorization": Secret(env="ORTHANC_AUTHORIZATION")}))
    with pytest.raises(NodeError, match=r"refuses to search \(status 401\)"):
        node.search("studies", Query(modality="DX"))


def test_a_wrong_path_is_an_error_of_the_node(archive, config):
    node = Node("archive", config.model_copy(update={"url": archive.url.replace("dicom-web", "elsewhere")}))
    with pytest.raises(NodeError, match=r"\(status 404\)"):
        node.search("studies", Query(modality="DX"))


def test_a_file_that_the_archive_cannot_read_is_an_error(node):
    broken = dataset(StudyInstanceUID=None, SeriesInstanceUID=None)
    with pytest.raises(NodeError, match=r"refuses to store \(status 400\)"):
        node.store([written(broken)])


def test_threads_share_a_node(node):
    made = [dataset() for _ in range(6)]
    node.store([written(each) for each in made])
    back: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=lambda each=each: back.update({uids(each)[2]: node.retrieve(*uids(each))}))
        for each in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {uid: read(data).SOPInstanceUID for uid, data in back.items()} == {
        uids(each)[2]: uids(each)[2] for each in made
    }
