"""DICOM through the API, with a real archive: an image in, its report and pictures back beside it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.core.overlays import picture
from serving.deploy.service import Service
from serving.dicom.node_config import NodeConfig
from serving.dicom.nodes import Node, Query
from serving.interfaces.schemas import Box, ImageSize
from tests.serving.conftest import client_of, make_service, png, serve_instead
from tests.serving.dicom.files import dataset, written
from tests.serving.dicom.orthanc import OrthancAddress, orthanc_server
from tests.serving.dicom.test_report import groups

BOX = {"x_min": 2, "y_min": 2, "x_max": 20, "y_max": 20}
NAME = "Mustermann^Erika"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancAddress]:
    with orthanc_server(tmp_path_factory.mktemp("orthanc")) as address:
        yield address


@pytest.fixture
def node(archive: OrthancAddress, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("PACS", archive.authorization)
    return {"url": archive.url, "headers": {"Authorization": {"env": "PACS"}}}


@pytest.fixture
def service(bundle: Bundle, tmp_path: Path, node: dict[str, Any]) -> Iterator[Service]:
    gone = {"url": "http://127.0.0.1:1/dicom-web", "timeout_s": 2}
    service = make_service(bundle.path, tmp_path / "state", dicom={"nodes": {"pacs": node, "gone": gone}})
    yield service
    service.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with client_of(service) as client:
        yield client


@pytest.fixture
def original() -> pydicom.Dataset:
    return dataset(PatientName=NAME, PatientID="P-4711")


def reference(image: pydicom.Dataset) -> dict[str, str]:
    return {
        "study_uid": str(image.StudyInstanceUID),
        "series_uid": str(image.SeriesInstanceUID),
        "instance_uid": str(image.SOPInstanceUID),
    }


def test_an_image_is_found_fetched_read_and_reported_beside_itself(
    client: TestClient, service: Service, node: dict[str, Any], original: pydicom.Dataset, tmp_path: Path
) -> None:
    archive = Node("pacs", NodeConfig(**node))
    archive.store([written(original)])
    assert client.get("/v1/nodes").json() == {"nodes": ["gone", "pacs"]}
    found = client.get(f"/v1/nodes/pacs/instances?study_uid={original.StudyInstanceUID}").json()["instances"]
    assert [each["instance_uid"] for each in found] == [original.SOPInstanceUID]
    by_order = client.get("/v1/nodes/pacs/instances?accession_number=A-99").json()["instances"]
    assert found[0] in by_order
    study = client.post("/v1/studies/fetch", json={"node": "pacs", "instance": reference(original)})
    assert study.status_code == 201, study.text
    digest = study.json()["digest"]
    interaction = {"boxes": [BOX], "rejected": ["mass"]}
    sent = client.post(
        f"/v1/studies/{digest}/send",
        json={
            "node": "pacs",
            "original": reference(original),
            "interaction": interaction,
            "pictures": ["nodule", "mass"],
        },
    )
    assert sent.status_code == 200, sent.text
    uids = sent.json()["instance_uids"]
    there = archive.search("instances", Query(study_uid=str(original.StudyInstanceUID)))
    assert {str(each.SOPInstanceUID) for each in there} == {str(original.SOPInstanceUID), *uids}
    filed = {str(each.SOPInstanceUID): str(each.SeriesInstanceUID) for each in there}
    report = pydicom.dcmread(io.BytesIO(archive.retrieve(str(original.StudyInstanceUID), filed[uids[0]], uids[0])))
    assert report.PatientName == NAME
    text = str(highdicom.sr.srread(io.BytesIO(written(report))))
    assert "mass" in text and "key.tester-admin" in text and service.models.champion.digest in text
    capture = pydicom.dcmread(io.BytesIO(archive.retrieve(str(original.StudyInstanceUID), filed[uids[1]], uids[1])))
    assert capture.pixel_array.shape[2] == 3 and capture.SOPClassUID.name.startswith("Secondary Capture")
    entries = list(service.store.ledger.entries())
    assert [entry["kind"] for entry in entries[-2:]] == ["interaction", "document"]
    assert entries[-1]["body"]["documents"] == uids
    everything = str(entries) + (tmp_path / "state/store.db").read_bytes().decode("latin-1")
    for secret in (NAME, "P-4711", *reference(original).values()):
        assert secret not in everything


def test_a_download_is_under_a_pseudonym(client: TestClient, original: pydicom.Dataset) -> None:
    upload = client.post("/v1/studies", files={"file": (f"{NAME}.dcm", written(original))})
    digest = upload.json()["digest"]
    answer = client.post(f"/v1/studies/{digest}/report.dcm", json={"interaction": {"boxes": [BOX]}})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    report = pydicom.dcmread(io.BytesIO(answer.content))
    picture = client.post(f"/v1/studies/{digest}/captures/mass.dcm", json={})
    capture = pydicom.dcmread(io.BytesIO(picture.content))
    for document, data in ((report, answer.content), (capture, picture.content)):
        assert document.StudyInstanceUID.startswith("2.25.") and document.PatientName == ""
        assert NAME.encode() not in data and str(original.StudyInstanceUID).encode() not in data
    assert report.StudyInstanceUID == capture.StudyInstanceUID


def said_in(report: bytes) -> dict[str, dict[str, list[Any]]]:
    return groups(pydicom.dcmread(io.BytesIO(report)))


@pytest.mark.parametrize("decision", ["keep", "revert"])
def test_a_report_of_a_signed_reading_says_what_the_ledger_says(
    client: TestClient, service: Service, original: pydicom.Dataset, bundle: Bundle, tmp_path: Path, decision: str
) -> None:
    predicted = client.post("/v1/studies", files={"file": ("a.dcm", written(original))}).json()
    digest = predicted["digest"]
    state = {"boxes": [BOX | {"kind": "finding", "concept": "nodule"}], "rejected": ["mass"]}
    ann, bob = (client_of(service, role) for role in (Role.READER, Role.REVIEWER))
    body = {"state": state, "decision": decision, "comment": "Nur links."}
    signed = ann.post(f"/v1/studies/{digest}/readings", json=body).json()
    number = signed["record"]["number"]
    for who in (ann, client):  # an administrator may see it, and it stays the reader's
        report = who.post(f"/v1/studies/{digest}/report.dcm", json={"reading": number})
        assert report.status_code == 200, report.text
        found = said_in(report.content)
        assert found["assessment"]["Comment"] == ["Nur links."]
        assert found["assessment"]["Entry of the audit ledger"] == [
            f"{number}:{signed['record']['hash']}, {signed['at']}"
        ]
        for each in signed["classes"]:
            assert found[each["name"]]["Probability"] == [pytest.approx(each["probability"], abs=1e-12)]
            assert found[each["name"]]["Predicted"] == ["Yes" if each["name"] in signed["found"] else "No"]
        kept = decision == "keep"
        assert found["mass"]["Reader's verdict"] == ["Rejected" if kept else "No verdict"]
        assert ("box 1" in found) is kept, "what was taken back is not filed as a finding"
        text = str(pydicom.dcmread(io.BytesIO(report.content)))
        assert "key.tester-reader" in text and "tester-admin" not in text
    for asked, status, code in (
        ({"reading": number, "interaction": {"rejected": ["mass"]}}, 422, "invalid_interaction"),
        ({"reading": number + 1}, 404, "unknown_reading"),
        ({"reading": 0}, 422, "invalid_request"),
    ):
        answer = ann.post(f"/v1/studies/{digest}/report.dcm", json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    blind = bob.post(f"/v1/studies/{digest}/report.dcm", json={"reading": number})
    assert (blind.status_code, blind.json()["error"]["code"]) == (404, "unknown_reading")
    shutil.copytree(bundle.path, tmp_path / "other")
    with (tmp_path / "other/manifest.json").open("a") as manifest:
        manifest.write("\n")
    serve_instead(service, Bundle.open(tmp_path / "other"))
    later = ann.post(f"/v1/studies/{digest}/report.dcm", json={"reading": number})
    assert (later.status_code, later.json()["error"]["code"]) == (409, "model_changed")


def test_a_signed_reading_is_filed_beside_its_image(
    client: TestClient, service: Service, node: dict[str, Any], original: pydicom.Dataset
) -> None:
    archive = Node("pacs", NodeConfig(**node))
    archive.store([written(original)])
    digest = client.post("/v1/studies/fetch", json={"node": "pacs", "instance": reference(original)}).json()["digest"]
    body = {"decision": "keep", "state": {"boxes": [BOX]}, "comment": "filed"}
    number = client.post(f"/v1/studies/{digest}/readings", json=body).json()["record"]["number"]
    asked = {"node": "pacs", "original": reference(original), "reading": number, "pictures": ["mass"]}
    sent = client.post(f"/v1/studies/{digest}/send", json=asked)
    assert sent.status_code == 200, sent.text
    entry = list(service.store.ledger.entries("document"))[-1]
    assert entry["body"]["request"]["reading"] == number
    assert len(archive.search("instances", Query(study_uid=str(original.StudyInstanceUID)))) == 3


def test_what_cannot_be_sent(client: TestClient, sample: bytes, original: pydicom.Dataset) -> None:
    plain = client.post("/v1/studies", files={"file": ("a.png", sample)}).json()["digest"]
    digest = client.post("/v1/studies", files={"file": ("a.dcm", written(original))}).json()["digest"]
    other = reference(original) | {"instance_uid": "1.2.3"}
    cases: list[tuple[str, Any, int, str]] = [
        (f"{plain}/report.dcm", {}, 409, "not_dicom"),
        (f"{plain}/captures/mass.dcm", {}, 409, "not_dicom"),
        ("0" * 64 + "/report.dcm", {}, 404, "unknown_study"),
        (f"{digest}/captures/ship.dcm", {}, 404, "unknown_concept"),
        (f"{digest}/report.dcm", {"interaction": {"rejected": ["ship"]}}, 422, "invalid_interaction"),
        (f"{digest}/send", {"node": "else", "original": reference(original)}, 404, "unknown_node"),
        (f"{digest}/send", {"node": "pacs", "original": other}, 409, "dicom_context_differs"),
        (f"{digest}/send", {"node": "pacs", "original": reference(original)}, 404, "unknown_instance"),
        (f"{digest}/send", {"node": "gone", "original": reference(original)}, 502, "dicom_node_unavailable"),
        (f"{digest}/send", {"node": "pacs", "original": other | {"study_uid": "../x"}}, 422, "invalid_request"),
        ("fetch", {"node": "pacs", "instance": other}, 404, "unknown_instance"),
        ("fetch", {"node": "http://evil", "instance": other}, 404, "unknown_node"),
    ]
    for path, body, status, code in cases:
        answer = client.post(f"/v1/studies/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (path, answer.text)
    assert client.get("/v1/nodes/pacs/instances?accession_number=A*").status_code == 422
    assert client.get(f"/v1/nodes/pacs/instances?accession_number={'A' * 17}").status_code == 422
    for query, status in (("", 422), ("?study_uid=x", 422), ("?patient_id=*", 422), ("?modality=DX&limit=1000", 422)):
        assert client.get(f"/v1/nodes/pacs/instances{query}").status_code == status
    assert client.get("/v1/nodes/else/instances?modality=DX").status_code == 404


def test_what_must_not_come_in_does_not(client: TestClient, service: Service) -> None:
    burned = client.post("/v1/studies", files={"file": ("a.dcm", written(dataset(BurnedInAnnotation="YES")))})
    assert (burned.status_code, burned.json()["error"]["code"]) == (422, "burned_in_annotation")
    half = written(dataset())[:400]
    assert client.post("/v1/studies", files={"file": ("a.dcm", half)}).status_code == 422
    assert client.get("/v1/worklist").json()["items"] == []


def test_a_picture_shows_image_map_and_boxes() -> None:
    grey = png(np.full((24, 48), 100, np.uint8))
    overlay = np.zeros((24, 48, 4), np.uint8)
    overlay[:, 24:] = (255, 0, 0, 255)
    boxes = [
        Box(x_min=10, y_min=10, x_max=90, y_max=90),
        Box(x_min=-50, y_min=0, x_max=500, y_max=900, kind="ignore"),
        Box(x_min=20, y_min=20, x_max=60, y_max=60, kind="finding", concept="mass"),
    ]
    drawn = picture(grey, png(overlay), boxes, ImageSize(width=200, height=100))
    assert drawn.shape == (384, 768, 3)
    assert tuple(drawn[200, 200]) == (100, 100, 100) and tuple(drawn[200, 600]) == (255, 0, 0)
    assert tuple(drawn[200, 10 * 768 // 200]) == (124, 196, 255)
    assert tuple(drawn[200, 20 * 768 // 200]) == (111, 220, 154)
    assert tuple(drawn[0, 5]) == (255, 143, 143)
    assert Image.fromarray(drawn).mode == "RGB"
