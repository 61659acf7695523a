"""The reading view as a reader uses it: by what is on the screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect

from csr.bundle.format import Bundle
from serving.core.intake import Upload
from serving.store.entries import Caller
from tests.serving.interfaces.browser import Room

Point = tuple[float, float]  # as shares of the image's width and height


class Reading:
    """A study that is open, its numbers and its map drawn."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.wait_for_url(re.compile("#/read/[0-9a-f]{64}$"))
        self.digest = page.url.rpartition("/")[2]
        self.settle()

    @classmethod
    def of_sample(cls, room: Room, page: Page, bundle: Bundle, number: int) -> Reading:
        """Opens a sample that the worklist has, as anybody's link to it does."""
        data = (bundle.path / "samples" / f"{number:02}.png").read_bytes()
        (study,) = room.service.plane.add_studies([Upload(data, "sample")], Caller("modality", "test"))
        page.goto(f"{room.url}/#/read/{study.digest}")
        return cls(page)

    def settle(self) -> None:
        """Waits until what is on the screen belongs together."""
        expect(self.page.locator("#image")).to_have_attribute("data-drawn", "image map")
        expect(self.page.locator("#results")).to_have_attribute("aria-busy", "false")

    def numbers(self) -> str:
        """Classes and concepts as they are shown."""
        return "".join(self.page.locator(part).inner_text() for part in ("#classes", "#concepts"))

    def boxes(self) -> Locator:
        """The boxes on the image, each once."""
        return self.page.locator("#boxes rect:is(.focus, .ignore, .finding):not(.handle, .draft)")

    def at(self, point: Point) -> Point:
        """Where a place of the image is on the screen."""
        frame = self.page.locator("#image-frame").bounding_box()
        assert frame is not None
        return frame["x"] + point[0] * frame["width"], frame["y"] + point[1] * frame["height"]

    def sketch(self, start: Point, end: Point) -> None:
        """Drags the mouse, and does not wait for an answer."""
        (x, y), (to_x, to_y) = self.at(start), self.at(end)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move((x + to_x) / 2, (y + to_y) / 2)
        self.page.mouse.move(to_x, to_y)
        self.page.mouse.up()

    def sent(self, act: Callable[[], object]) -> dict[str, Any]:
        """What the page says to the server when the reader does something; waits for the numbers."""
        with self.page.expect_request("**/interactions") as request:
            act()
        self.settle()
        body: Any = request.value.post_data_json
        return dict(body)

    def tool(self, name: str) -> None:
        """What a drag does from now on."""
        self.page.get_by_role("radio", name=re.compile(name)).check(force=True)

    def draw(self, start: Point, end: Point) -> dict[str, Any]:
        """Draws a box with the tool at hand."""
        return self.sent(lambda: self.sketch(start, end))

    def undo(self) -> None:
        self.sent(self.page.get_by_role("button", name="Undo").click)

    def redo(self) -> None:
        self.sent(self.page.get_by_role("button", name="Redo").click)

    def choose(self, concept: str, answer: str) -> None:
        """Says confirmed, none or rejected of a concept, and does not wait for an answer."""
        self.page.locator(f'input[data-answer="{concept}"][value="{answer}"]').check(force=True)

    def say(self, concept: str, answer: str) -> dict[str, Any]:
        return self.sent(lambda: self.choose(concept, answer))

    def word(self, concept: str) -> str:
        """What is said of a concept, as the page shows it."""
        return self.page.locator(f'input[data-answer="{concept}"]:checked').get_attribute("value") or ""

    def begin_to_sign(self, comment: str = "", decision: str = "keep") -> None:
        """Fills in the dialog and signs, and does not wait for an answer."""
        self.page.get_by_role("button", name="Sign…").click()
        dialog = self.page.get_by_role("dialog", name="Sign this reading")
        choice = dialog.get_by_role("radio", name=re.compile("Keep" if decision == "keep" else "Revert"))
        if choice.is_visible():
            choice.check(force=True)
        dialog.get_by_label("Comment").fill(comment)
        dialog.get_by_role("button", name="Sign").click()

    def expect_signed(self) -> None:
        expect(self.page.get_by_role("dialog", name="Sign this reading")).to_be_hidden()
        expect(self.page.locator("#signed")).to_contain_text("You signed this reading")
        expect(self.page.locator("#signed")).not_to_contain_text("not signed")

    def sign(self, comment: str = "", decision: str = "keep") -> None:
        self.begin_to_sign(comment, decision)
        self.expect_signed()
