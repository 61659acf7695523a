"""A study opened from an archive by its address, as a PACS does it, with a real Orthanc as the archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from playwright.sync_api import Browser, expect

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.dicom.node_config import NodeConfig
from serving.dicom.nodes import Node
from tests.serving.conftest import make_service
from tests.serving.dicom.files import dataset, written
from tests.serving.dicom.orthanc import orthanc_server
from tests.serving.interfaces.browser import Room, guest, opened_room
from tests.serving.interfaces.reading import Reading

NAME = "Mustermann^Erika"


@pytest.fixture
def original() -> pydicom.Dataset:
    return dataset(PatientName=NAME, AccessionNumber="A-1234")


@pytest.fixture
def room(
    bundle: Bundle, browser: Browser, original: pydicom.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Room]:
    """A server beside an archive that has one study."""
    (tmp_path / "orthanc").mkdir()
    with orthanc_server(tmp_path / "orthanc") as archive:
        monkeypatch.setenv("PACS", archive.authorization)
        node = {"url": archive.url, "headers": {"Authorization": {"env": "PACS"}}}
        Node("pacs", NodeConfig(**node)).store([written(original)])
        service = make_service(bundle.path, tmp_path / "state", dicom={"nodes": {"pacs": node}})
        with opened_room(service, browser) as room:
            yield room


def test_an_address_opens_a_study(room: Room, original: pydicom.Dataset) -> None:
    page = room.enter(path=f"/?node=pacs&study={original.StudyInstanceUID}")
    reading = Reading(page)
    assert "Mustermann" not in page.content()
    page.reload()
    assert Reading(page).digest == reading.digest
    page.goto(f"{room.url}/?node=pacs&accession=A-1234")
    assert Reading(page).digest == reading.digest
    page.goto(f"{room.url}/?node=pacs&accession=B-1")
    expect(page.get_by_role("alert")).to_contain_text("pacs has no image of this study")
    page.goto(f"{room.url}/?node=elsewhere&accession=B-1")
    expect(page.get_by_role("alert")).to_contain_text("elsewhere")


def test_whoever_has_to_sign_in_first_is_brought_to_the_study(room: Room) -> None:
    reader = guest(room.browser, room.url)
    room.guests.append(reader)
    page = reader.page()
    page.goto(f"{room.url}/?node=pacs&accession=A-1234")
    page.get_by_label("Your key").fill(room.service.keys.create("clinician", Role.READER)[1])
    page.get_by_role("button", name="Sign in").click()
    Reading(page)


def test_the_worklist_searches_an_archive(room: Room) -> None:
    page = room.enter()
    page.get_by_text("From an archive…").click()
    page.get_by_label("Number or UID").fill("A-1234")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("tr[data-study]")).to_have_count(1)
    assert "Mustermann" not in page.content()
