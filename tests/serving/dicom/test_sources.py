"""DICOM images of the same pixels are one study: their identities stay side by side, and a document is about one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pydicom
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from serving.access.roles import Role
from serving.client import Client, ClientError, InteractionRequest
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server
from serving.store.schema import study_source
from tests.serving.client.test_client import URL, _Waiting
from tests.serving.conftest import png
from tests.serving.dicom.files import dataset, written


def upload(client: TestClient, data: bytes) -> str:
    answer = client.post("/v1/studies", files={"file": ("a", data)})
    assert answer.status_code == 201, answer.text
    digest: str = answer.json()["digest"]
    return digest


GREY = np.clip(np.arange(64), 8, 56).astype(np.uint8)[None].repeat(64, 0)  # soft, so that its double shrinks to it


def exposure(**attributes: Any) -> pydicom.Dataset:
    """As large as the network's input, under a window that keeps every value."""
    pixels = {"Rows": 64, "Columns": 64, "WindowCenter": 128, "WindowWidth": 256}
    return dataset(PixelData=GREY.astype(np.uint16).tobytes(), **pixels, **attributes)


@pytest.fixture
def files() -> list[bytes]:
    """One exposure under two identities, and a third of other attributes under the second's."""
    second = exposure(Modality="CR")
    first, again = exposure(), exposure(Modality="CR", BodyPartExamined=None)
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(again, name, getattr(second, name))
    return [written(first), written(second), written(again)]


def sources(client: TestClient, digest: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/v1/studies/{digest}/sources").json()["sources"]
    return found


def referenced(data: bytes) -> str:
    """The instance that a report is about."""
    report = pydicom.dcmread(io.BytesIO(data))
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    return str(evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)


def test_an_upload_of_the_same_pixels_takes_no_identity_away(client: TestClient, files: list[bytes]) -> None:
    digest = upload(client, files[0])
    before = sources(client, digest)
    assert [each["number"] for each in before] == [1]
    first = client.post(f"/v1/studies/{digest}/report.dcm", json={})
    assert upload(client, png(GREY)) == digest, "a picture of the same pixels is the same study"
    assert upload(client, files[0]) == digest
    assert sources(client, digest) == before, "neither replaced nor added twice"
    again = client.post(f"/v1/studies/{digest}/report.dcm", json={})
    assert referenced(again.content) == referenced(first.content) == before[0]["instance_uid"]


def test_of_several_a_document_names_its_own(client: TestClient, files: list[bytes]) -> None:
    (digest,) = {upload(client, data) for data in files}
    found = sources(client, digest)
    assert [(each["number"], each["modality"]) for each in found] == [(1, "DX"), (2, "CR"), (3, "CR")]
    assert {(each["rows"], each["columns"]) for each in found} == {(64, 64)}
    assert len({each["instance_uid"] for each in found}) == 2
    for path in ("report.dcm", "captures/mass.dcm"):
        refused = client.post(f"/v1/studies/{digest}/{path}", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "several_sources")
        said = refused.json()["error"]["message"]
        for each in found:
            assert f"{each['number']} ({each['modality']}, 64×64, instance {each['instance_uid']}, since " in said
        unknown = client.post(f"/v1/studies/{digest}/{path}", json={"source": 4})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_source")
        for odd in (0, -1, "1", 1.5, 10**9):
            assert client.post(f"/v1/studies/{digest}/{path}", json={"source": odd}).status_code == 422
    for each in found:
        report = client.post(f"/v1/studies/{digest}/report.dcm", json={"source": each["number"]})
        assert referenced(report.content) == each["instance_uid"]
        capture = client.post(f"/v1/studies/{digest}/captures/mass.dcm", json={"source": each["number"]})
        assert pydicom.dcmread(io.BytesIO(capture.content)).StudyInstanceUID == each["study_uid"]


def test_those_who_upload_at_once_all_leave_their_identity(client: TestClient, service: Service) -> None:
    files = [written(exposure()) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        (digest,) = set(pool.map(lambda data: upload(client, data), files))
    assert [each["number"] for each in sources(client, digest)] == list(range(1, 9))
    assert service.store.ledger.verify().faults == ()


def test_findings_are_placed_in_the_source_s_own_pixels(client: TestClient, files: list[bytes]) -> None:
    digest = upload(client, files[0])
    for size, status in ((32, 409), (64, 200)):
        asked = {"interaction": {"image": {"width": size, "height": size}}}
        assert client.post(f"/v1/studies/{digest}/report.dcm", json=asked).status_code == status


def test_a_study_last_seen_in_another_size_is_not_reported_in_it(client: TestClient, files: list[bytes]) -> None:
    """In whose pixels a reader's boxes are then."""
    digest = upload(client, files[0])
    assert upload(client, png(GREY.repeat(2, 0).repeat(2, 1))) == digest, "the network sees the same of both"
    refused = client.post(f"/v1/studies/{digest}/report.dcm", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "image_size_differs")
    assert upload(client, files[0]) == digest
    assert client.post(f"/v1/studies/{digest}/report.dcm", json={}).status_code == 200


def test_a_study_without_one(client: TestClient, sample: bytes) -> None:
    digest = upload(client, sample)
    assert sources(client, digest) == []
    assert client.get(f"/v1/studies/{'0' * 64}/sources").status_code == 404
    named = client.post(f"/v1/studies/{digest}/report.dcm", json={"source": 1})
    assert (named.status_code, named.json()["error"]["code"]) == (409, "not_dicom")


def test_a_source_that_was_altered_is_not_reported_about(
    client: TestClient, service: Service, files: list[bytes]
) -> None:
    digest = upload(client, files[0])
    with service.store.database.write() as connection:
        connection.execute(sa.update(study_source).values(source="{"))
    refused = client.post(f"/v1/studies/{digest}/report.dcm", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "study_altered")


@pytest.fixture
def asking(service: Service) -> Iterator[Client]:
    key = service.keys.create("client", Role.READER)[1]
    with Client(URL, key, transport=_Waiting(create_server(service))) as client:
        yield client


def test_the_client_names_one_too(asking: Client, files: list[bytes]) -> None:
    for data in files[:2]:
        digest = asking.add_study(("a.dcm", data)).digest
    found = asking.sources(digest).sources
    with pytest.raises(ClientError, match="name one as source: 1 ") as refused:
        asking.report(digest)
    assert refused.value.code == "several_sources"
    request = InteractionRequest(rejected=["mass"])
    assert referenced(asking.report(digest, request, source=2)) == found[1].instance_uid
    assert asking.capture(digest, "mass", request, source=1)[128:132] == b"DICM"
