"""The page in a real browser, against the real API under uvicorn."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.core.study_cache import StudyCache
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server
from serving.store.schema import assessment, study
from tests.serving.conftest import make_service

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = make_service(bundle.path, tmp_path_factory.mktemp("served"))
    yield service
    service.close()


@pytest.fixture(scope="module")
def key(served: Service) -> str:
    return served.keys.create("clinician", Role.READER)[1]


@pytest.fixture(scope="module")
def url(served: Service) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_server(served), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "the page is tested in a real browser: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str, key: str) -> Iterator[Page]:
    """The page, signed in, with sample 1 read. Whatever it writes to the console as an error fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(15_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    sign_in(page, url, key)
    page.get_by_role("button", name="1", exact=True).click()
    settled(page)
    yield page
    page.close()
    # A 4xx that the page expects is logged by the browser itself.
    assert [text for text in problems if "Failed to load resource" not in text] == []


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(url)
    page.get_by_label("Your key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


def settled(page: Page) -> None:
    expect(page.locator("#overlay")).to_have_attribute("src", re.compile("^blob:"))
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    frame: Any = page.locator("#boxes").bounding_box()

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return frame["x"] + point[0] * frame["width"], frame["y"] + point[1] * frame["height"]

    page.mouse.move(*at(start))
    page.mouse.down()
    page.mouse.move(*at(end), steps=3)
    page.mouse.up()
    settled(page)


def test_a_reader_corrects_a_prediction_and_undoes_it(page: Page) -> None:
    expect(page.get_by_text("Research use only")).to_be_visible()
    classes = page.locator("#classes")
    plain = classes.inner_text()
    page.get_by_role("button", name="Mass", exact=False).and_(page.locator("[data-concept]")).click()
    expect(page.locator("#exemplars li")).to_have_count(3)

    drag(page, (0.2, 0.2), (0.6, 0.6))
    expect(page.locator("#boxes rect.positive")).to_have_count(1)
    expect(classes).not_to_have_text(plain, use_inner_text=True)
    boxed = classes.inner_text()
    assert boxed != plain
    expect(page.locator("#summary")).not_to_be_empty()

    page.get_by_role("button", name="Reject mass").click()
    expect(page.get_by_role("button", name="Restore mass")).to_be_visible()
    expect(page.locator("#exemplars li")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Reject mass")).to_be_visible()
    settled(page)
    assert classes.inner_text() == boxed
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#boxes rect.positive")).to_have_count(0)
    settled(page)
    assert classes.inner_text() == plain
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_the_page_says_when_the_model_abstains(
    page: Page, served: Service, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = page.get_by_text("The model abstains")
    expect(sentence).to_be_hidden()
    classes = page.locator("#classes").inner_text()
    monkeypatch.setattr(served.models.champion.explainer, "manifest", replace(bundle.manifest, abstain_below=1.0))
    page.get_by_role("button", name="Reject mass").click()
    expect(sentence).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    settled(page)
    expect(sentence).to_be_visible()
    assert page.locator("#classes").inner_text() == classes
    monkeypatch.undo()
    page.get_by_role("button", name="Reject mass").click()
    expect(sentence).to_be_hidden()


def test_reset_can_be_undone(page: Page) -> None:
    page.get_by_label("Ignore").check(force=True)
    drag(page, (0.5, 0.5), (0.9, 0.9))
    expect(page.locator("#boxes rect.negative")).to_have_count(1)
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#boxes rect.negative")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#boxes rect.negative")).to_have_count(1)


def test_a_box_needs_no_mouse(page: Page) -> None:
    page.get_by_role("button", name="Add box").press("Enter")
    box = page.locator("#box-list .box")
    expect(box).to_be_focused()
    rect = page.locator("#boxes rect.positive")
    before = float(rect.get_attribute("x") or "nan")
    box.press("ArrowRight")
    expect(rect).not_to_have_attribute("x", str(before))
    settled(page)
    expect(box).to_be_focused()
    width = float(rect.get_attribute("width") or "nan")
    box.press("Shift+ArrowRight")
    expect(rect).not_to_have_attribute("width", str(width))
    assert float(rect.get_attribute("width") or "nan") > width
    settled(page)
    box.press("Delete")
    expect(rect).to_have_count(0)


def test_a_study_that_the_server_does_not_have_is_sent_again(page: Page, served: Service) -> None:
    served.plane._studies = StudyCache(1 << 20)
    with served.store.database.write() as connection:
        connection.execute(assessment.delete())
        connection.execute(study.delete())
    page.get_by_role("button", name="Reject mass").click()
    expect(page.get_by_role("button", name="Restore mass")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    assert len(served.plane._studies) == 1


def test_errors_are_shown_and_boxes_and_prediction_stay_together(page: Page) -> None:
    page.locator("#file").set_input_files([{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}])
    expect(page.get_by_role("alert")).to_contain_text("notes.txt: not a PNG, JPEG, TIFF or DICOM image")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    plain = page.locator("#classes").inner_text()
    page.route("**/interactions", lambda route: route.abort())
    page.get_by_role("button", name="Add box").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator("#boxes rect.positive")).to_have_count(0)
    assert page.locator("#classes").inner_text() == plain
    page.unroute("**/interactions")
    page.get_by_role("button", name="Add box").click()
    expect(page.locator("#boxes rect.positive")).to_have_count(1)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_file_of_another_shape_is_read_in_its_own_pixels(page: Page, wide: bytes) -> None:
    page.locator("#file").set_input_files([{"name": "wide.png", "mimeType": "image/png", "buffer": wide}])
    expect(page.locator("#study-name")).to_have_text("wide.png · 200×100")
    expect(page.locator("#boxes")).to_have_attribute("viewBox", "0 0 200 100")
    settled(page)
    with page.expect_request("**/interactions") as sent:
        drag(page, (0.5, 0.0), (1.0, 1.0))
    body: Any = sent.value.post_data_json
    assert body["image"] == {"width": 200, "height": 100}
    assert body["boxes"][0]["x_min"] == pytest.approx(100, abs=2)
    assert body["boxes"][0]["y_max"] == pytest.approx(100, abs=2)


@pytest.mark.parametrize("width", [360, 820, 1280])
def test_nothing_overflows_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_role("button", name="Reject mass").click()
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inner = page.evaluate("document.querySelector('.concepts').getBoundingClientRect().right")
    assert inner <= page.evaluate("document.querySelector('.results').getBoundingClientRect().right")


def test_every_control_has_a_name(page: Page) -> None:
    page.get_by_role("button", name="Add box").click()
    settled(page)
    for control in page.locator("button, input, svg[role=img]").all():
        name = control.evaluate(
            "e => [e.ariaLabel, e.textContent, ...[...(e.labels ?? [])].map(l => l.innerText)].join('')"
        )
        assert name.strip(), control.evaluate("e => e.outerHTML")


def test_nobody_gets_in_without_a_key_and_out_is_out(browser: Browser, url: str, key: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(url)
    assert page.url == f"{url}/sign-in"
    page.get_by_label("Your key").fill("csr_" + "x" * 43)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("mistyped, or revoked")
    sign_in(page, url, key)
    expect(page.locator("#samples button").first).to_be_visible()
    assert "csr_" not in page.evaluate("document.cookie")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{url}/sign-in")
    page.goto(url)
    assert page.url == f"{url}/sign-in"
    page.close()
