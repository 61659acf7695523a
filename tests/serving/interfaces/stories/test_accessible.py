"""axe-core finds nothing against WCAG 2.2 AA in any view and its dialogs, on a wide screen and on a tall one."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from csr.bundle.format import Bundle
from serving.access.roles import Role
from tests.serving.conftest import png
from tests.serving.interfaces.browser import TALL, WIDE, Room, accessibility_faults
from tests.serving.interfaces.reading import Reading

SIZES = pytest.mark.parametrize("viewport", [WIDE, TALL], ids=["wide", "tall"])


def test_signing_in(room: Room) -> None:
    page = room.knock()
    page.get_by_label("Your key").fill("csr_" + "x" * 43)
    page.get_by_role("button", name="Sign in").click()
    assert accessibility_faults(page) == []


@SIZES
def test_the_worklist(room: Room, viewport: dict[str, int]) -> None:
    page = room.enter(viewport=viewport)
    expect(page.get_by_role("heading", name="No studies yet")).to_be_visible()
    assert accessibility_faults(page) == []
    page.locator("#worklist-empty").get_by_role("button", name="Load the sample worklist").click()
    notes = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.locator("input[type=file]").set_input_files([notes])  # type: ignore[list-item]
    expect(page.locator("#intake-progress")).to_contain_text("refused")
    page.get_by_text("From an archive…").click()
    expect(page.locator("tr[data-study]").first).to_be_visible()
    expect(page.locator("#intake-progress")).to_contain_text("files added")
    assert accessibility_faults(page) == []
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    assert accessibility_faults(page) == []


@SIZES
def test_the_reading(room: Room, bundle: Bundle, viewport: dict[str, int]) -> None:
    page = room.enter(viewport=viewport)
    reading = Reading.of_sample(room, page, bundle, 1)
    assert accessibility_faults(page) == []
    reading.draw((0.2, 0.2), (0.6, 0.6))
    reading.say("mass", "rejected")
    reading.say("nodule", "confirmed")
    reading.tool("Finding")
    with page.expect_response("**/probe"):
        reading.sketch((0.5, 0.5), (0.8, 0.8))
    expect(page.locator("#ask [data-chip]").first).to_be_visible()
    assert accessibility_faults(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Sign…").click()
    expect(page.get_by_role("dialog", name="Sign this reading")).to_be_visible()
    assert accessibility_faults(page) == []
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Skip…").click()
    expect(page.get_by_role("dialog", name="Skip this study")).to_be_visible()
    assert accessibility_faults(page) == []
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Export", exact=True).click()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    assert accessibility_faults(page) == []


def test_an_image_that_does_not_fit_and_an_error(room: Room, bundle: Bundle) -> None:
    import numpy as np
    from PIL import Image

    page = room.enter()
    grey = np.asarray(Image.open(bundle.path / "samples" / "00.png"))
    odd = {"name": "odd.png", "mimeType": "image/png", "buffer": png(255 - grey)}
    page.locator("input[type=file]").set_input_files([odd])  # type: ignore[list-item]
    page.get_by_role("link", name="odd.png").click()
    reading = Reading(page)
    expect(page.get_by_role("alert").filter(has_text="unlike those that the model was trained on")).to_be_visible()
    page.route("**/interactions", lambda route: route.abort())
    reading.choose("mass", "rejected")
    expect(page.get_by_role("alert").filter(has_text="The server does not answer")).to_be_visible()
    assert accessibility_faults(page) == []


@SIZES
def test_the_atlas(room: Room, viewport: dict[str, int]) -> None:
    page = room.enter("reviewer", Role.REVIEWER, "/#/atlas", viewport=viewport)
    expect(page.locator(".choose").first).to_be_visible()
    page.locator(".detail .verdict-form").get_by_role("button", name="Reject").click()
    page.get_by_label(re.compile("^Pick ")).nth(1).check(force=True)
    expect(page.get_by_role("region", name="What is to be signed")).to_contain_text("get another answer")
    assert accessibility_faults(page) == []


@SIZES
def test_the_models(room: Room, bundle: Bundle, viewport: dict[str, int]) -> None:
    page = room.enter("admin", Role.ADMIN, viewport=viewport)
    Reading.of_sample(room, page, bundle, 1)
    page.goto(f"{room.url}/#/models")
    expect(page.get_by_role("heading", name="Models in service")).to_be_visible()
    expect(page.get_by_role("heading", name="The same study, side by side")).to_be_visible()
    assert accessibility_faults(page) == []
    page.get_by_role("button", name="Roll back…").click()
    expect(page.get_by_role("dialog", name="Roll back the champion?")).to_be_visible()
    assert accessibility_faults(page) == []
