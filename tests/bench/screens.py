"""``make screens``: pictures of each view of the page, and a short recording of a reading, in a real browser.

A server over a bundle gets its samples as a worklist, some of which another reader has signed. Every view is pictured
at 1440×900 and at 820×1180 into ``reports/screens``; a reading and a review of the atlas are recorded as an animation.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect, sync_playwright

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.core.intake import Upload
from serving.interfaces.schemas import Box, InteractionRequest, ReadingRequest, SkipRequest
from serving.store.entries import Caller
from serving.store.worklist import WorklistQuery
from tests.serving.conftest import make_service
from tests.serving.interfaces.browser import FLAGS, TALL, WIDE, Room, listening
from tests.serving.interfaces.reading import Point, Reading

SIZES = {"1440x900": WIDE, "820x1180": TALL}
FRAME = {"width": 1200, "height": 750}
MOST_BYTES = 3 << 20
ME = "key:dr-one"
OTHER = Caller("key:dr-two", "screens")


class Film:
    """Frames of a page with how long each stays, and a dot where the mouse is."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def take(self, milliseconds: int, mouse: Point | None = None) -> None:
        frame = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        if mouse is not None:
            x, y = mouse
            ImageDraw.Draw(frame).ellipse((x - 7, y - 7, x + 7, y + 7), fill="white", outline="black", width=2)
        self.frames.append(frame)
        self.milliseconds.append(milliseconds)

    def write(self, file: Path) -> None:
        """Raises:
        ValueError: it is too large for a page that people open.
        """
        first, *more = self.frames
        first.save(file, save_all=True, append_images=more, duration=self.milliseconds, loop=0, quality=72, method=4)
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"{file}: {file.stat().st_size >> 10} KiB; take fewer or smaller frames")


@dataclass(frozen=True)
class Sample:
    """A study of the worklist, with what its source says of it."""

    digest: str
    boxes: list[tuple[str, float, float, float, float]]  # concept, then the corners in pixels


@contextmanager
def opened_room(bundle: Bundle) -> Iterator[tuple[Room, list[Sample]]]:
    """A server over a bundle, its samples in the worklist, in a folder that goes away; and a browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("screens: a browser is needed: apt-get install chromium")
    known = json.loads((bundle.path / "samples" / "samples.json").read_text())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        expect.set_options(timeout=60_000)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        service = make_service(bundle.path, Path(folder))
        uploads = [Upload((bundle.path / "samples" / each["file"]).read_bytes(), each["file"]) for each in known]
        added = [service.plane.add_studies([upload], OTHER)[0] for upload in uploads]
        samples = [Sample(study.digest, each["boxes"]) for study, each in zip(added, known, strict=True)]
        with listening(service) as url:
            room = Room(service, url, browser)
            yield room, samples
            problems = room.leave()
        service.close()
        browser.close()
    for problem in problems:
        print(f"screens: the browser complained: {problem}", file=sys.stderr)


def arrange(room: Room, shown: Sample) -> None:
    """What a list looks like at noon: both readers have been here, and one study is still to be read."""
    me = Caller(ME, "screens")
    readings = room.service.readings
    answer = readings.worklist(WorklistQuery("margin", "all", None, 200, 0), ME, False)
    waiting = [item.digest for item in answer.items if item.digest != shown.digest]
    for number in (1, 3, 4, 8):
        readings.sign(waiting[number], ReadingRequest(decision="keep"), me)
    for number in (2, 3, 4):
        confirmed = ["mass"] if number == 4 else []
        state = InteractionRequest(confirmed=confirmed)
        readings.sign(waiting[number], ReadingRequest(decision="keep", state=state), OTHER)
    readings.skip(waiting[6], SkipRequest(reason="Poor image"), me)


def hero(room: Room, samples: list[Sample]) -> Sample:
    """The unread study of up to three boxes that changes most when its first finding is named."""
    answer = room.service.readings.worklist(WorklistQuery("margin", "unread", None, 200, 0), ME, False)
    unread = {item.digest for item in answer.items}

    def moved(sample: Sample) -> float:
        concept, left, top, right, bottom = sample.boxes[0]
        box = Box(kind="finding", concept=concept, x_min=left, y_min=top, x_max=right, y_max=bottom)
        said = room.service.plane.interact(sample.digest, InteractionRequest(boxes=[box]), OTHER)
        pairs = zip(said.before.classes, said.after.classes, strict=True)
        return max(abs(before.probability - after.probability) for before, after in pairs)

    return max((each for each in samples if each.digest in unread and 1 <= len(each.boxes) <= 3), key=moved)


def box_of(sample: Sample, page: Page) -> tuple[str, Point, Point]:
    """The concept of the first box, and the box as shares of the image."""
    concept, left, top, right, bottom = sample.boxes[0]
    width, height = (float(page.locator("#image-frame").get_attribute(name) or 1) for name in ("width", "height"))
    return concept, (left / width, top / height), (right / width, bottom / height)


def argue(reading: Reading, sample: Sample) -> None:
    """The reader names what the source says is there."""
    concept, start, end = box_of(sample, reading.page)
    reading.page.locator(f'[data-concept="{concept}"]').click()
    reading.tool("Finding")
    reading.sketch(start, end)
    more = reading.page.get_by_role("button", name="Something else…")
    chip = reading.page.locator(f'#ask [data-chip="{concept}"]')
    expect(reading.page.locator("#ask [data-chip]").first).to_be_visible()
    if not chip.is_visible():
        more.click()
    reading.sent(chip.click)


def review(page: Page) -> None:
    """Rejects the second prototype, and waits for what that would do."""
    page.locator(".choose").nth(1).click()
    page.locator(".detail .verdict-form").get_by_role("button", name="Reject").click()
    expect(page.get_by_role("region", name="What is to be signed")).to_contain_text("get another answer")
    still(page)


def still(page: Page) -> None:
    """All pictures are there."""
    page.wait_for_load_state("networkidle")
    page.evaluate("Promise.all([...document.images].filter((i) => i.loading !== 'lazy').map((i) => i.decode()))")


def picture_views(room: Room, shown: Sample, folder: Path) -> None:
    """Every view, at both sizes."""
    for name, viewport in SIZES.items():

        def picture(page: Page, view: str, name: str = name) -> None:
            shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            # 256 colours of their own: a third of the bytes, and nothing that an eye misses
            shot.quantize(256, dither=Image.Dither.NONE).save(folder / f"{view}-{name}.png", optimize=True)

        page = room.enter("dr-one", Role.REVIEWER, viewport=viewport)
        expect(page.locator("tr[data-study]").first).to_be_visible()
        still(page)
        picture(page, "worklist")
        page.goto(f"{room.url}/#/read/{shown.digest}")
        reading = Reading(page)
        picture(page, "reading")
        argue(reading, shown)
        picture(page, "reading-corrected")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("dialog", name="Sign this reading")).to_be_visible()
        picture(page, "reading-sign")
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        picture(page, "keys")
        page.keyboard.press("Escape")
        page.goto(f"{room.url}/#/atlas")
        expect(page.locator(".choose").first).to_be_visible()
        review(page)
        picture(page, "atlas")
        page.goto(f"{room.url}/#/models")
        expect(page.get_by_role("table").filter(has_text="Macro F1").first).to_be_visible()
        still(page)
        picture(page, "models")
        page.evaluate("localStorage.clear()")
        page.context.clear_cookies()
        page.goto(room.url)
        picture(page, "sign-in")


def record(room: Room, shown: Sample, file: Path) -> None:
    """A reading, and a review of the atlas, as an animation."""
    page = room.enter("dr-three", Role.REVIEWER, viewport=FRAME)
    film = Film(page)
    row = page.locator(f'tr[data-study="{shown.digest}"]')
    row.scroll_into_view_if_needed()
    still(page)
    film.take(1600)
    row.locator("a").click()
    reading = Reading(page)
    film.take(1600)
    concept, start, end = box_of(shown, page)
    page.locator(f'[data-concept="{concept}"]').click()
    film.take(1400)
    reading.tool("Finding")
    (x, y), (to_x, to_y) = reading.at(start), reading.at(end)
    page.mouse.move(x, y)
    page.mouse.down()
    for part in (0.0, 0.35, 0.7, 1.0):
        now = (x + (to_x - x) * part, y + (to_y - y) * part)
        page.mouse.move(*now)
        film.take(180, now)
    page.mouse.up()
    expect(page.locator("#ask [data-chip]").first).to_be_visible()
    film.take(1500, (to_x, to_y))
    page.keyboard.press("Escape")
    argue(reading, shown)
    film.take(2200)
    page.keyboard.press("Control+Enter")
    page.get_by_label("Comment").fill(f"{concept.replace('_', ' ')}, as boxed")
    film.take(1600)
    page.get_by_role("dialog").get_by_role("button", name="Sign", exact=True).click()
    reading.expect_signed()
    film.take(1800)
    page.goto(f"{room.url}/#/atlas")
    expect(page.locator(".choose").first).to_be_visible()
    still(page)
    film.take(1600)
    review(page)
    film.take(2400)
    film.write(file)


def main() -> None:
    """Raises:
    SystemExit: there is no browser.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench.screens", description="Pictures of the page.")
    parser.add_argument("--bundle", type=Path, default=Path("build/bundle"))
    parser.add_argument("--folder", type=Path, default=Path("reports/screens"), help="of the pictures (%(default)s)")
    parser.add_argument("--recording", type=Path, default=Path("docs/assets/reading.webp"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.open(given.bundle)
    with opened_room(bundle) as (room, samples):
        shown = hero(room, samples)
        arrange(room, shown)
        record(room, shown, given.recording)
        picture_views(room, shown, given.folder)
    print(f"screens: {len(list(given.folder.glob('*.png')))} pictures in {given.folder}, {given.recording}")


if __name__ == "__main__":
    main()
