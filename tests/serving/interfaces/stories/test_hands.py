"""A reading by finger, by pen and by keyboard alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from playwright.sync_api import CDPSession, Page, expect

from csr.bundle.format import Bundle
from serving.access.roles import Role
from tests.serving.interfaces.browser import Room
from tests.serving.interfaces.reading import Point, Reading


class Fingers:
    """Touches as the browser gets them from a screen."""

    def __init__(self, page: Page) -> None:
        self._session: CDPSession = page.context.new_cdp_session(page)

    def _touch(self, kind: str, points: Sequence[Point]) -> None:
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def drag(self, *ways: tuple[Point, Point]) -> None:
        """Each finger from its start to its end, all at once."""
        self._touch("touchStart", [start for start, _ in ways])
        for part in (0.25, 0.5, 0.75, 1.0):
            self._touch("touchMove", [(a + (c - a) * part, b + (d - b) * part) for (a, b), (c, d) in ways])
        self._touch("touchEnd", [])


def pen(page: Page, start: Point, end: Point) -> None:
    """A stroke of a stylus, as the browser gets it from a tablet."""
    session = page.context.new_cdp_session(page)

    def stroke(kind: str, point: Point, buttons: int) -> None:
        event: dict[str, Any] = {"type": kind, "x": point[0], "y": point[1], "button": "left", "buttons": buttons}
        session.send("Input.dispatchMouseEvent", event | {"pointerType": "pen", "force": 0.5, "clickCount": 1})

    stroke("mousePressed", start, 1)
    for part in (0.3, 0.6, 1.0):
        stroke("mouseMoved", (start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part), 1)
    stroke("mouseReleased", end, 0)


def window(page: Page) -> list[float]:
    """The part of the image that is on the screen, in its pixels: left, top, width and height."""
    return [float(each) for each in (page.locator("#boxes").get_attribute("viewBox") or "").split()]


def test_a_finger_draws_and_two_fingers_zoom(room: Room, bundle: Bundle) -> None:
    page = room.enter(has_touch=True, viewport={"width": 820, "height": 1180}, is_mobile=True)
    reading = Reading.of_sample(room, page, bundle, 1)
    fingers = Fingers(page)
    page.locator("#stage").scroll_into_view_if_needed()
    scrolled = page.evaluate("scrollY")
    start, end = reading.at((0.2, 0.2)), reading.at((0.6, 0.6))
    state = reading.sent(lambda: fingers.drag((start, end)))
    (box,) = state["boxes"]
    image = state["image"]
    assert box["x_min"] == pytest.approx(0.2 * image["width"], abs=1.5)
    assert box["y_max"] == pytest.approx(0.6 * image["height"], abs=1.5)
    assert page.evaluate("scrollY") == scrolled  # the page stays where it is

    before = window(page)
    middle = reading.at((0.5, 0.5))
    fingers.drag(
        ((middle[0] - 30, middle[1]), (middle[0] - 90, middle[1])),
        ((middle[0] + 30, middle[1]), (middle[0] + 90, middle[1])),
    )
    expect(page.locator("#boxes")).not_to_have_attribute("viewBox", " ".join(str(each) for each in before))
    assert window(page)[2] < 0.6 * before[2]
    expect(reading.boxes()).to_have_count(1)  # a pinch draws nothing
    assert page.evaluate("visualViewport.scale") == pytest.approx(1)

    page.get_by_role("button", name="Whole image").tap()
    page.get_by_role("button", name="Undo").tap()
    expect(reading.boxes()).to_have_count(0)


def test_a_pen_draws_and_the_hand_beside_it_does_not(room: Room, bundle: Bundle) -> None:
    page = room.enter(has_touch=True)
    reading = Reading.of_sample(room, page, bundle, 1)
    state = reading.sent(lambda: pen(page, reading.at((0.25, 0.25)), reading.at((0.5, 0.75))))
    assert state["boxes"][0]["y_max"] == pytest.approx(0.75 * state["image"]["height"], abs=1.5)
    Fingers(page).drag((reading.at((0.6, 0.6)), reading.at((0.9, 0.9))))
    expect(reading.boxes()).to_have_count(1)


def test_a_whole_reading_without_a_mouse(room: Room) -> None:
    page = room.knock()
    page.get_by_label("Your key").focus()
    page.keyboard.type(room.service.keys.create("typist", Role.READER)[1])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="No studies yet")).to_be_visible()
    tab_to(page, "Load the sample worklist")
    page.keyboard.press("Enter")
    rows = page.locator("tr[data-study]")
    expect(rows).not_to_have_count(0)
    expect(page.locator("#intake-progress")).to_contain_text("files added")
    page.keyboard.press("j")
    expect(page.locator("tr[data-study] a").first).to_be_focused()
    page.keyboard.press("Enter")
    reading = Reading(page)

    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keys")
    expect(keys).to_contain_text("Draw a focus box")
    page.keyboard.press("Escape")
    expect(keys).to_be_hidden()

    state = reading.sent(lambda: page.keyboard.press("b"))
    first = state["boxes"][0]
    box = page.locator("#box-list .box")
    expect(box).to_be_focused()
    moved = reading.sent(lambda: page.keyboard.press("ArrowRight"))["boxes"][0]
    assert moved["x_min"] > first["x_min"] and moved["x_max"] > first["x_max"]
    wider = reading.sent(lambda: page.keyboard.press("Shift+ArrowDown"))["boxes"][0]
    assert wider["y_max"] > moved["y_max"] and wider["y_min"] == moved["y_min"]
    expect(box).to_be_focused()

    page.keyboard.press("j")
    concept = page.locator('[data-concept][aria-pressed="true"]').get_attribute("data-concept") or ""
    state = reading.sent(lambda: page.keyboard.press("x"))
    assert state["rejected"] == [concept]
    state = reading.sent(lambda: page.keyboard.press("Control+z"))
    assert state["rejected"] == []
    state = reading.sent(lambda: page.keyboard.press("Control+Shift+Z"))
    assert state["rejected"] == [concept]
    page.keyboard.press("h")
    expect(reading.boxes()).to_have_count(0)
    page.keyboard.press("h")
    expect(reading.boxes()).to_have_count(1)

    page.keyboard.press("Control+Enter")
    dialog = page.get_by_role("dialog", name="Sign this reading")
    expect(dialog).to_be_visible()
    tab_to(page, "Comment")
    page.keyboard.type("no mouse was harmed")
    tab_to(page, "Sign")
    page.keyboard.press("Enter")
    reading.expect_signed()
    expect(page.get_by_role("button", name="Next study")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(lambda address: reading.digest not in address)
    assert Reading(page).digest != reading.digest
    (entry,) = room.entries("reading")
    assert entry["actor"].endswith("typist") and entry["body"]["request"]["comment"] == "no mouse was harmed"


def tab_to(page: Page, name: str) -> None:
    """Presses Tab until the keyboard is on the control of that name."""
    pattern = re.compile(rf"^{re.escape(name)}\b")
    for _ in range(60):
        page.keyboard.press("Tab")
        focused: str = page.evaluate(
            """() => {
                const node = document.activeElement;
                const labels = [...(node.labels ?? [])].map((label) => label.textContent);
                return [node.ariaLabel, ...labels, node.textContent].filter(Boolean)[0]?.trim() ?? "";
            }"""
        )
        if pattern.match(focused):
            return
    raise AssertionError(f"{name} is not reached by Tab")
