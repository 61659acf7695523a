"""The worklist in a real browser: what is in it, what has been done, how studies get into it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from csr.bundle.format import Bundle
from serving.core.intake import Upload
from serving.store.entries import Caller
from tests.serving.conftest import stripes
from tests.serving.interfaces.browser import Room, accessibility_faults


def picture(value: int) -> dict[str, Any]:
    return {"name": f"study {value}.png", "mimeType": "image/png", "buffer": stripes(value)}


def rows(page: Page) -> Locator:
    return page.locator("[data-study]")


def open_files(page: Page, *files: dict[str, Any]) -> None:
    page.locator("#files").set_input_files(list(files))


def filled(room: Room, count: int = 4, **options: Any) -> Page:
    """The page of a reader who has added so many studies."""
    page = room.enter(**options)
    open_files(page, *(picture(10 * number) for number in range(count)))
    expect(rows(page)).to_have_count(count)
    expect(page.locator("#intake-progress")).to_contain_text(f"{count} file")
    return page


def digests(page: Page) -> list[str]:
    return [str(row.get_attribute("data-study")) for row in rows(page).all()]


def listed(room: Room, **query: Any) -> list[str]:
    """The server's order."""
    page = room.guests[-1].context.pages[0]
    answer = page.request.get(f"{room.url}/v1/worklist", params=query)
    return [item["digest"] for item in answer.json()["items"]]


def test_a_newcomer_is_told_what_to_do_and_the_samples_fill_the_list(room: Room, bundle: Bundle) -> None:
    page = room.enter()
    welcome = page.locator("#worklist-empty")
    expect(welcome).to_contain_text("No studies yet")
    assert accessibility_faults(page) == []
    welcome.get_by_role("button", name="Load the sample worklist").click()
    samples = len(bundle.samples())
    expect(rows(page)).to_have_count(samples)
    expect(welcome).to_be_hidden()
    expect(page.locator("#worklist-count")).to_have_text(f"{samples} studies")
    expect(rows(page).first).to_contain_text(re.compile(r"Sample \d+"))
    assert accessibility_faults(page) == []


def test_a_row_says_what_the_model_says_and_opens_the_reading(room: Room, bundle: Bundle) -> None:
    page = filled(room, 2)
    row = rows(page).first
    answer = page.request.get(f"{room.url}/v1/worklist").json()["items"][0]
    expect(row).to_contain_text(answer["top"].replace("_", " "))
    expect(row).to_contain_text(f"{round(100 * answer['confidence'])} %")
    expect(row).to_contain_text("Unread")
    expect(row.locator("img")).to_have_js_property("complete", True)
    assert row.locator("img").evaluate("image => image.naturalWidth") > 0
    row.click()
    page.wait_for_url(f"{room.url}/#/read/{answer['digest']}")


def test_many_files_are_added_each_refused_by_itself_with_its_reason(room: Room) -> None:
    page = room.enter()
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    torn = {"name": "torn.png", "mimeType": "image/png", "buffer": stripes(0)[:60]}
    open_files(page, picture(10), text, picture(20), torn, picture(30))
    progress = page.locator("#intake-progress")
    expect(progress).to_contain_text("3 files added")
    expect(progress).to_contain_text("2 files were refused")
    refused = progress.locator("li")
    expect(refused.nth(0)).to_have_text("notes.txt: not a PNG, JPEG, TIFF, BMP, WebP or DICOM image")
    expect(refused.nth(1)).to_contain_text("torn.png: ")
    expect(rows(page)).to_have_count(3)
    progress.get_by_role("button", name="Clear").click()
    expect(progress).to_be_hidden()


def test_files_are_dropped_anywhere_on_the_view(room: Room) -> None:
    page = room.enter()
    expect(page.locator("#worklist-empty")).to_be_visible()
    transfer = page.evaluate_handle(
        """([bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        [list(stripes(40))],
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.locator(".upload")).to_have_class(re.compile("over"))
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("dropped.png")


def test_what_was_refused_because_the_server_was_away_can_be_sent_again(room: Room) -> None:
    page = room.enter()
    page.route("**/v1/studies", lambda route: route.abort())
    open_files(page, picture(10), picture(20))
    progress = page.locator("#intake-progress")
    expect(progress).to_contain_text("study 10.png: The server does not answer")
    page.unroute("**/v1/studies")
    progress.get_by_role("button", name="Try these again").click()
    expect(rows(page)).to_have_count(2)
    expect(progress).to_contain_text("2 files added")


def test_files_go_on_being_sent_while_the_reader_looks_at_something_else(room: Room) -> None:
    page = room.enter()
    waiting: list[Any] = []
    page.route("**/v1/studies", lambda route: waiting.append(route))
    open_files(page, picture(10), picture(20))
    expect(page.locator("#intake-progress")).to_contain_text("0 of 2 done")
    page.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="Models in service")).to_be_visible()
    for route in waiting:
        route.continue_()
    page.get_by_role("link", name="Worklist", exact=True).click()
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#intake-progress")).to_contain_text("2 files added")


def test_the_list_is_sorted_and_filtered_as_the_server_says_and_the_choice_is_kept(room: Room) -> None:
    page = filled(room)
    assert digests(page) == listed(room, order="margin")
    with page.expect_response(lambda answer: "order=newest" in answer.url):
        page.locator("#worklist-order").select_option("newest")
    expect(page.locator(".list")).to_have_attribute("aria-busy", "false")
    assert digests(page) == listed(room, order="newest")
    page.reload()
    expect(rows(page)).to_have_count(4)
    expect(page.locator("#worklist-order")).to_have_value("newest")
    assert digests(page) == listed(room, order="newest")
    page.get_by_role("radio", name="Signed", exact=True).check(force=True)
    expect(page.locator("#worklist-empty")).to_contain_text("No study is left by these filters")
    page.get_by_role("button", name="Show all studies").click()
    expect(rows(page)).to_have_count(4)
    page.locator("#worklist-help").check()
    expect(page.locator("#worklist-count")).to_contain_text(f"{len(listed(room, help='true'))} stud")


def test_what_a_reader_did_is_shown_to_them_and_next_is_what_they_did_not_do(room: Room) -> None:
    page = filled(room, 3)
    first, second, third = digests(page)
    answered = page.request.post(f"{room.url}/v1/studies/{first}/readings", data={"state": {}, "decision": "keep"})
    assert answered.status == 201, answered.text()
    assert page.request.post(f"{room.url}/v1/studies/{second}/skips", data={"reason": "not mine"}).status == 201
    page.reload()
    expect(page.locator(f'[data-study="{first}"]')).to_contain_text("Signed by you")
    expect(page.locator(f'[data-study="{second}"]')).to_contain_text("Skipped by you")
    page.get_by_role("button", name="Read the next one").click()
    page.wait_for_url(f"{room.url}/#/read/{third}")


def test_two_readers_see_that_the_other_has_signed(room: Room) -> None:
    page = filled(room, 1)
    (digest,) = digests(page)
    signed = {"state": {}, "decision": "keep"}
    assert page.request.post(f"{room.url}/v1/studies/{digest}/readings", data=signed).status == 201
    other = room.enter("second")
    row = other.locator(f'[data-study="{digest}"]')
    expect(row).to_contain_text("Unread")
    expect(row).to_contain_text("signed by 1 other")
    assert other.request.post(f"{room.url}/v1/studies/{digest}/readings", data=signed).status == 201
    other.reload()
    expect(row).to_contain_text("Signed by you")
    expect(row).to_contain_text("readers agree")


def test_the_list_needs_no_mouse(room: Room) -> None:
    page = filled(room, 3)
    order = digests(page)
    page.keyboard.press("ArrowDown")
    expect(page.locator(f'[data-study="{order[0]}"] a')).to_be_focused()
    page.keyboard.press("j")
    expect(page.locator(f'[data-study="{order[1]}"] a')).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{room.url}/#/read/{order[0]}")
    page.go_back()
    expect(rows(page)).to_have_count(3)
    page.get_by_role("radio", name="All", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Unread", exact=True)).to_be_checked()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Next study in the list")


def test_a_long_list_comes_in_parts(room: Room) -> None:
    room.service.plane.add_studies([Upload(stripes(value)) for value in range(0, 240, 4)], Caller("filler", "test"))
    page = room.enter()
    expect(rows(page)).to_have_count(50)
    expect(page.locator("#worklist-count")).to_have_text("50 of 60 studies")
    page.get_by_role("button", name="Show more").click()
    expect(rows(page)).to_have_count(60)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert digests(page) == listed(room, limit=200)


def test_without_an_archive_the_page_says_so(room: Room) -> None:
    page = room.enter()
    page.get_by_text("From an archive…").click()
    expect(page.locator(".archive")).to_contain_text("No archive is configured")


@pytest.mark.parametrize("width", [360, 820, 1440])
def test_nothing_overflows_sideways(room: Room, width: int) -> None:
    page = filled(room, 2, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
