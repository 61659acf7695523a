"""A clinician's list: studies come in, are sorted and filtered by the server, and the next one is a key away."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import FilePayload, Page, expect

from csr.bundle.format import Bundle
from serving.core.intake import Upload
from serving.interfaces.schemas import StudyAnswer
from serving.store.entries import Caller
from tests.serving.conftest import png
from tests.serving.dicom.files import dataset, written
from tests.serving.interfaces.browser import Room


def studies(bundle: Bundle, count: int) -> list[bytes]:
    """So many different pictures, made of the bundle's samples."""
    files = sorted((bundle.path / "samples").glob("*.png"))
    pictures = [np.asarray(Image.open(file)) for file in files]
    return [png(np.roll(pictures[k % len(pictures)], k // len(pictures), axis=0)) for k in range(count)]


def payloads(pictures: list[bytes]) -> list[FilePayload]:
    return [{"name": f"study-{k}.png", "mimeType": "image/png", "buffer": data} for k, data in enumerate(pictures)]


def added(room: Room, pictures: list[bytes]) -> list[StudyAnswer]:
    """Studies that somebody else sent."""
    return room.service.plane.add_studies([Upload(data, "x.png") for data in pictures], Caller("modality", "test"))


def digests(page: Page) -> list[str]:
    return [row.get_attribute("data-study") or "" for row in page.locator("tr[data-study]").all()]


def test_the_first_visit_says_what_to_do_and_the_samples_are_one_press_away(room: Room, bundle: Bundle) -> None:
    page = room.enter()
    expect(page).to_have_title(re.compile("^Worklist"))
    expect(page.get_by_text("Research use only")).to_be_visible()
    expect(page.get_by_role("heading", name="No studies yet")).to_be_visible()
    page.locator("#worklist-empty").get_by_role("button", name="Load the sample worklist").click()
    rows = page.locator("tr[data-study]")
    count = len(list((bundle.path / "samples").glob("*.png")))
    expect(rows).to_have_count(count)
    expect(page.locator("#worklist-count")).to_have_text(f"{count} studies")
    expect(rows.first.get_by_role("img").or_(rows.first.locator("img"))).to_be_visible()
    assert rows.first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    expect(rows.first).to_contain_text("Unread")
    expect(rows.first).to_contain_text("%")


def test_many_files_at_once_are_added_and_what_is_refused_is_said(room: Room, bundle: Bundle) -> None:
    page = room.enter()
    dicom = written(dataset(PatientName="Mustermann^Erika"))
    odd: list[FilePayload] = [
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"},
        {"name": "film.dcm", "mimeType": "application/dicom", "buffer": dicom},
    ]
    page.locator("input[type=file]").set_input_files([*payloads(studies(bundle, 5)), *odd])
    progress = page.locator("#intake-progress")
    expect(progress).to_contain_text("6 files added")
    expect(progress.get_by_role("alert")).to_contain_text("1 file was refused:")
    expect(progress.get_by_role("alert")).to_contain_text("notes.txt: not a PNG, JPEG, TIFF, BMP, WebP or DICOM image")
    expect(page.locator("tr[data-study]")).to_have_count(6)
    expect(page.get_by_role("link", name="film.dcm")).to_be_visible()
    assert "Mustermann" not in page.content()


def test_files_are_dropped_anywhere_on_the_view(room: Room, bundle: Bundle) -> None:
    page = room.enter()
    expect(page.get_by_role("heading", name="No studies yet")).to_be_visible()
    data = page.evaluate_handle(
        """pictures => {
            const transfer = new DataTransfer();
            pictures.forEach((bytes, k) =>
                transfer.items.add(new File([new Uint8Array(bytes)], `drop-${k}.png`, { type: "image/png" })));
            return transfer;
        }""",
        [list(picture) for picture in studies(bundle, 2)],
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": data})
    page.dispatch_event("main", "drop", {"dataTransfer": data})
    expect(page.locator("tr[data-study]")).to_have_count(2)


def test_a_worklist_of_many_is_sorted_and_filtered_as_the_server_does(room: Room, bundle: Bundle) -> None:
    added(room, studies(bundle, 120))
    page = room.enter()
    rows = page.locator("tr[data-study]")
    expect(rows).to_have_count(50)
    expect(page.locator("#worklist-count")).to_have_text("50 of 120 studies")
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(100)
    with page.expect_response(re.compile("/v1/worklist.*order=newest")) as answered:
        page.get_by_role("combobox", name="First").select_option("newest")
    expect(rows).to_have_count(50)
    answer: Any = answered.value.json()
    assert digests(page) == [item["digest"] for item in answer["items"]][:50]
    times = [item["added_at"] for item in answer["items"]]
    assert times == sorted(times, reverse=True)
    with page.expect_response(re.compile("/v1/worklist.*help=true")) as answered:
        page.get_by_label("Only where the model asks for help").check()
    asked: Any = answered.value.json()
    expect(page.locator("#worklist-count")).to_have_text(
        re.compile(f"{asked['total']} (study|studies)$") if asked["total"] else re.compile(".*")
    )
    assert all(item["asks_for_help"] for item in asked["items"])
    page.reload()  # the choice is this browser's
    expect(page.get_by_label("Only where the model asks for help")).to_be_checked()
    expect(page.get_by_role("combobox", name="First")).to_have_value("newest")


def test_what_was_begun_signed_and_skipped_is_found_again(room: Room, bundle: Bundle) -> None:
    added(room, studies(bundle, 4))
    page = room.enter()
    expect(page.locator("tr[data-study]")).to_have_count(4)
    order = digests(page)
    key = room.guests[0].context
    for path, body in (
        (f"/v1/studies/{order[0]}/readings", {"state": {}, "decision": "keep", "comment": ""}),
        (f"/v1/studies/{order[1]}/skips", {"reason": "not a chest film"}),
        (f"/v1/studies/{order[2]}/interactions", {"rejected": ["mass"]}),
    ):
        answer = key.request.post(room.url + path, data=body, headers={"Origin": room.url})
        assert answer.ok, answer.text()
    page.reload()
    for name, state, digest in (
        ("Signed", "Signed by you", order[0]),
        ("Skipped", "Skipped by you", order[1]),
        ("Begun", "Begun, not signed", order[2]),
        ("Unread", "Unread", order[3]),
    ):
        page.get_by_role("radio", name=name, exact=True).check(force=True)
        rows = page.locator("tr[data-study]")
        expect(rows).to_have_count(1)
        expect(rows).to_have_attribute("data-study", digest)
        expect(rows).to_contain_text(state)
    page.get_by_role("radio", name="All", exact=True).check(force=True)
    expect(page.locator("tr[data-study]")).to_have_count(4)
    page.get_by_role("button", name="Read the next one").click()
    page.wait_for_url(f"**/#/read/{order[3]}")


def test_thumbnails_are_small_and_cached_for_good(room: Room, bundle: Bundle, tmp_path: Path) -> None:
    (study,) = added(room, studies(bundle, 1))
    page = room.enter()
    answer = page.context.request.get(f"{room.url}/v1/studies/{study.digest}/thumbnail.png")
    assert "immutable" in answer.headers["cache-control"]
    assert max(Image.open(io.BytesIO(answer.body())).size) <= 96
