"""The page in a real browser, against the real API under uvicorn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.core.study_cache import StudyCache
from serving.deploy.service import Service
from serving.store.schema import assessment, study
from tests.serving.conftest import make_service, png
from tests.serving.interfaces.browser import guest, listening, sign_in

expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    many = {"rates": {"requests_per_minute": 100_000}}  # all tests are one reader, who opens the page again and again
    service = make_service(bundle.path, tmp_path_factory.mktemp("served"), access=many)
    yield service
    service.close()


@pytest.fixture(scope="module")
def key(served: Service) -> str:
    return served.keys.create("clinician", Role.READER)[1]


@pytest.fixture(scope="module")
def url(served: Service) -> Iterator[str]:
    with listening(served) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str, key: str) -> Iterator[Page]:
    """The page, signed in, with sample 1 read. Whatever goes wrong in the browser fails the test."""
    visitor = guest(browser, url, viewport={"width": 1280, "height": 800})
    page = visitor.page()
    sign_in(page, url, key)
    page.goto(f"{url}/#/read")
    open_sample(page, 1)
    yield page
    visitor.context.close()
    assert visitor.problems == []


def open_sample(page: Page, number: int) -> None:
    samples = page.locator("#samples")
    expect(samples.locator("button").first).to_be_attached()
    page.evaluate("document.querySelector('#sample-part').open = true")
    samples.get_by_role("button", name=str(number), exact=True).click()
    expect(page.locator("#study-name")).to_contain_text(f"sample {number}")
    settled(page)


def settled(page: Page) -> None:
    expect(page.locator("#image")).to_have_attribute("data-drawn", "image map")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def test_what_is_shown_is_not_built_again_under_the_reader(page: Page) -> None:
    """An address that changes while the page starts is told a second time, when it is shown already."""
    page.evaluate("document.querySelector('#sample-part').open = true")
    page.evaluate("window.dispatchEvent(new HashChangeEvent('hashchange'))")
    settled(page)
    expect(page.locator("#samples").get_by_role("button", name="1", exact=True)).to_be_visible()


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    frame: Any = page.locator("#image-frame").bounding_box()

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return frame["x"] + point[0] * frame["width"], frame["y"] + point[1] * frame["height"]

    page.mouse.move(*at(start))
    page.mouse.down()
    page.mouse.move(*at(end), steps=3)
    page.mouse.up()
    settled(page)


def word(page: Page, concept: str, answer: str) -> Locator:
    return page.locator(f'input[data-answer="{concept}"][value="{answer}"]')


def say(page: Page, concept: str, answer: str) -> None:
    """Confirms or rejects a concept, or takes that back."""
    word(page, concept, answer).check()
    settled(page)
    expect(word(page, concept, answer)).to_be_checked()


def sent(page: Page, act: Callable[[], object]) -> dict[str, Any]:
    """What the page says of the study when the reader does something."""
    with page.expect_request("**/interactions") as request:
        act()
    settled(page)
    body: Any = request.value.post_data_json
    return body


def test_a_reader_corrects_a_prediction_and_undoes_it(page: Page) -> None:
    expect(page.get_by_text("Research use only")).to_be_visible()
    classes = page.locator("#classes")
    plain = classes.inner_text()
    page.get_by_role("button", name="Mass", exact=False).and_(page.locator("[data-concept]")).click()
    expect(page.locator("#exemplars .exemplar")).to_have_count(3)

    drag(page, (0.2, 0.2), (0.6, 0.6))
    expect(page.locator("#boxes rect.focus")).to_have_count(1)
    expect(classes).not_to_have_text(plain, use_inner_text=True)
    boxed = classes.inner_text()
    assert boxed != plain
    expect(page.locator("#summary")).not_to_be_empty()

    say(page, "mass", "rejected")
    expect(page.locator("#exemplars li")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(word(page, "mass", "none")).to_be_checked()
    settled(page)
    assert classes.inner_text() == boxed
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#boxes rect.focus")).to_have_count(0)
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
    say(page, "mass", "rejected")
    expect(sentence).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    settled(page)
    expect(sentence).to_be_visible()
    assert page.locator("#classes").inner_text() == classes
    monkeypatch.undo()
    say(page, "mass", "rejected")
    expect(sentence).to_be_hidden()


def test_the_page_says_that_an_image_does_not_fit_before_any_number(page: Page, bundle: Bundle) -> None:
    banner = page.locator("#misfit")
    expect(banner).to_be_hidden()
    grey = np.asarray(Image.open(bundle.path / "samples" / "00.png"))
    page.locator("#file").set_input_files({"name": "odd.png", "mimeType": "image/png", "buffer": png(255 - grey)})
    expect(banner).to_be_visible()
    settled(page)
    expect(banner).to_contain_text("This image is unlike those that the model was trained on. The model abstains.")
    expect(banner.locator("li").first).not_to_be_empty()
    noted = re.compile("abstains: the image is unlike those that it was trained on")
    expect(page.locator("#abstains")).to_have_text(noted)
    ends = page.evaluate("""() => {
        const follows = document.querySelector("#misfit").compareDocumentPosition(document.querySelector("#classes"));
        return follows & Node.DOCUMENT_POSITION_FOLLOWING;
    }""")
    assert ends, "who reads the page in order hears it first"
    say(page, "mass", "rejected")
    expect(banner).to_be_visible()
    open_sample(page, 1)
    expect(banner).to_be_hidden()


def test_reset_can_be_undone(page: Page) -> None:
    page.get_by_label("Ignore").check(force=True)
    drag(page, (0.5, 0.5), (0.9, 0.9))
    expect(page.locator("#boxes rect.ignore")).to_have_count(1)
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#boxes rect.ignore")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#boxes rect.ignore")).to_have_count(1)


def test_a_box_needs_no_mouse(page: Page) -> None:
    page.get_by_role("button", name="Add box").press("Enter")
    box = page.locator("#box-list .box")
    expect(box).to_be_focused()
    rect = page.locator("#boxes rect.focus")
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


def test_a_concept_is_confirmed_rejected_or_neither_with_or_without_a_mouse(page: Page) -> None:
    body = sent(page, lambda: word(page, "mass", "confirmed").check())
    assert (body["confirmed"], body["rejected"]) == (["mass"], [])
    expect(word(page, "mass", "confirmed")).to_be_checked()
    word(page, "mass", "confirmed").focus()
    body = sent(page, lambda: page.keyboard.press("ArrowRight"))
    assert (body["confirmed"], body["rejected"]) == ([], [])
    expect(word(page, "mass", "none")).to_be_focused()
    body = sent(page, lambda: page.keyboard.press("ArrowRight"))
    assert (body["confirmed"], body["rejected"]) == ([], ["mass"])
    expect(word(page, "mass", "rejected")).to_be_focused()
    expect(page.get_by_role("radiogroup", name="What you say of mass")).to_be_visible()


def test_a_finding_box_asks_what_it_is_and_assumes_nothing(page: Page, bundle: Bundle) -> None:
    plain = page.locator("#classes").inner_text()
    page.get_by_label("Finding").check(force=True)
    interactions: list[str] = []
    page.on("request", lambda request: interactions.append(request.url) if "/interactions" in request.url else None)
    with page.expect_response("**/probe") as probed:
        drag(page, (0.2, 0.2), (0.5, 0.5))
    ranked = [each["name"] for each in probed.value.json()["concepts"]]
    chips = page.locator("#ask [data-chip]")
    expect(page.locator("#ask")).to_contain_text("What is it?")
    expect(chips).to_have_count(3)
    assert [chip.get_attribute("data-chip") for chip in chips.all()] == ranked[:3]
    expect(chips.first).to_contain_text("%")
    expect(chips.first).to_be_focused()
    assert interactions == [] and page.locator("#classes").inner_text() == plain
    page.get_by_role("button", name="Something else…").click()
    expect(chips).to_have_count(len(bundle.manifest.concepts))
    body = sent(page, lambda: page.locator(f'[data-chip="{ranked[-1]}"]').click())
    assert (body["boxes"][0]["kind"], body["boxes"][0]["concept"]) == ("finding", ranked[-1])
    expect(page.locator("#boxes rect.finding")).to_have_count(1)
    expect(word(page, ranked[-1], "confirmed")).to_be_checked()
    expect(page.locator("#box-list")).to_contain_text(f"Finding: {ranked[-1].replace('_', ' ')}")
    body = sent(page, lambda: word(page, ranked[-1], "none").check())
    assert body["boxes"] == []  # the box said that it is there


def test_a_finding_can_be_discarded_and_needs_no_mouse(page: Page) -> None:
    page.get_by_label("Finding").check(force=True)
    page.get_by_role("button", name="Add box").press("Enter")
    box = page.locator('[data-box="pending"]')
    expect(box).to_be_focused()
    expect(page.locator("#ask [data-chip]")).to_have_count(3)
    before = page.locator("#boxes rect.pending").get_attribute("x")
    with page.expect_request("**/probe"):
        box.press("ArrowRight")
    expect(page.locator("#boxes rect.pending")).not_to_have_attribute("x", str(before))
    expect(page.locator("#ask [data-chip]")).to_have_count(3)
    expect(box).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#ask")).to_be_hidden()
    expect(page.locator("#boxes rect.finding")).to_have_count(0)
    expect(page.get_by_role("button", name="Add box")).to_be_focused()
    page.get_by_role("button", name="Add box").press("Enter")
    body = sent(page, lambda: page.locator("#ask [data-chip]").nth(1).press("Enter"))
    assert body["boxes"][0]["concept"]
    expect(page.get_by_text("What is it?")).to_be_hidden()


def test_a_model_that_cannot_name_lets_the_reader_choose(
    page: Page, served: Service, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.models.champion, "naming", None)
    page.get_by_label("Finding").check(force=True)
    drag(page, (0.2, 0.2), (0.5, 0.5))
    expect(page.locator("#ask [data-chip]")).to_have_count(len(bundle.manifest.concepts))
    expect(page.locator("#ask")).not_to_contain_text("%")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_doubted_name_is_a_question_at_the_box(page: Page, served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    naming: Any = served.models.champion.naming
    monkeypatch.setattr(served.models.champion, "naming", replace(naming, doubt=0.2))
    page.get_by_label("Finding").check(force=True)
    with page.expect_response("**/probe") as probed:
        drag(page, (0.3, 0.3), (0.6, 0.6))
    ranked = [each["name"] for each in probed.value.json()["concepts"]]
    page.get_by_role("button", name="Something else…").click()
    page.locator(f'[data-chip="{ranked[-1]}"]').click()
    ask = page.locator("#ask")
    expect(ask).to_contain_text(f"Box 1 is named {ranked[-1].replace('_', ' ')}")
    expect(page.locator("#boxes text.finding")).to_contain_text("?")
    body = sent(page, lambda: page.locator(f'[data-chip="{ranked[0]}"]').click())
    assert body["boxes"][0]["concept"] == ranked[0] and len(body["boxes"]) == 1
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#ask-keep")).to_be_visible()
    page.locator("#ask-keep").click()
    expect(ask).to_be_hidden()
    expect(page.locator("#boxes text.finding")).not_to_contain_text("?")


def test_a_finding_where_all_is_ignored_is_refused_and_nothing_stays(page: Page) -> None:
    page.get_by_label("Ignore").check(force=True)
    drag(page, (0.0, 0.0), (1.0, 1.0))
    page.get_by_label("Finding").check(force=True)
    drag(page, (0.3, 0.3), (0.6, 0.6))
    page.locator("#ask [data-chip]").first.click()
    expect(page.get_by_role("alert")).to_contain_text("boxes[1]: this finding of")
    expect(page.get_by_role("alert")).to_contain_text("boxes[0] says to ignore all")
    expect(page.locator("#boxes rect.finding")).to_have_count(0)
    expect(page.locator("#boxes rect.ignore")).to_have_count(1)


def test_alpha_is_shown_and_can_be_changed(page: Page, bundle: Bundle) -> None:
    drag(page, (0.2, 0.2), (0.5, 0.5))
    shown = page.locator("#alpha-value")
    expect(shown).to_have_text(f"α {bundle.manifest.alpha:.2f} (the model’s)")
    faint = page.locator("#classes").inner_text()
    body = sent(page, lambda: page.get_by_label("Outside focus").press("End"))
    assert body["alpha"] == 1
    expect(shown).to_have_text("α 1.00")
    assert page.locator("#classes").inner_text() != faint
    page.get_by_role("button", name="Undo").click()
    settled(page)
    expect(shown).to_have_text(f"α {bundle.manifest.alpha:.2f} (the model’s)")
    assert page.locator("#classes").inner_text() == faint


def test_the_next_question_is_asked_with_its_reason(
    page: Page, served: Service, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = replace(bundle.manifest, least_effect=-1e9)
    monkeypatch.setattr(served.models.champion, "manifest", eager)
    say(page, "mass", "rejected")
    say(page, "mass", "none")
    study = page.evaluate("document.querySelector('#question-text').textContent")
    assert re.fullmatch(r"Is .+ present\?", study)
    expect(page.locator("#question-reason")).to_have_text(
        re.compile(r"^If .+ is there, .+ (rises|falls|stays) .+; if not, .+\.$")
    )
    expect(page.locator("#boxes circle.look")).to_have_count(1)
    page.locator("#question-skip").click()
    expect(page.locator("#question-text")).not_to_have_text(study)
    second = page.locator("#question-text").inner_text()
    body = sent(page, lambda: page.locator("#question-yes").click())
    assert len(body["confirmed"]) == 1 and body["confirmed"][0].replace("_", " ") in second
    expect(page.locator("#question-text")).not_to_have_text(second)
    third = page.locator("#question-text").inner_text()
    body = sent(page, lambda: page.locator("#question-no").press("Enter"))
    assert len(body["rejected"]) == 1 and body["rejected"][0].replace("_", " ") in third
    page.locator("#question-look").click()
    asked = page.locator("#question-text").inner_text()
    name = page.locator('[data-concept][aria-pressed="true"]').inner_text()
    assert name in asked
    monkeypatch.setattr(served.models.champion, "manifest", replace(bundle.manifest, least_effect=99.0))
    say(page, "cavity", "rejected")
    expect(page.locator("#question-text")).to_contain_text("question is worth asking")
    expect(page.locator("#question-yes")).to_be_hidden()


def test_a_study_that_the_server_does_not_have_is_sent_again(page: Page, served: Service) -> None:
    served.plane._studies = StudyCache(1 << 20)
    with served.store.database.write() as connection:
        connection.execute(assessment.delete())
        connection.execute(study.delete())
    say(page, "mass", "rejected")
    expect(page.get_by_role("alert")).to_be_hidden()
    assert len(served.plane._studies) == 1


def test_errors_are_shown_and_can_be_dismissed(page: Page) -> None:
    page.locator("#file").set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(page.get_by_role("alert")).to_contain_text("notes.txt: not a PNG, JPEG, TIFF, BMP, WebP or DICOM image")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_server_that_is_away_is_said_and_nothing_is_lost(page: Page) -> None:
    plain = page.locator("#classes").inner_text()
    page.route("**/interactions", lambda route: route.abort())
    page.get_by_role("button", name="Add box").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer. What you did is kept")
    expect(page.locator("#boxes rect.focus")).to_have_count(1)
    expect(page.locator("#stale")).to_be_visible()
    assert page.locator("#classes").inner_text() == plain
    page.unroute("**/interactions")
    page.get_by_role("button", name="Try now").click()
    settled(page)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#boxes rect.focus")).to_have_count(1)
    expect(page.locator("#classes")).not_to_have_text(plain, use_inner_text=True)


def test_a_file_of_another_shape_is_read_in_its_own_pixels(page: Page, wide: bytes) -> None:
    page.locator("#file").set_input_files({"name": "wide.png", "mimeType": "image/png", "buffer": wide})
    expect(page.locator("#study-name")).to_have_text("wide.png · 200×100")
    expect(page.locator("#image-frame")).to_have_attribute("width", "200")
    settled(page)
    with page.expect_request("**/interactions") as sent:
        drag(page, (0.5, 0.0), (1.0, 1.0))
    body: Any = sent.value.post_data_json
    assert body["image"] == {"width": 200, "height": 100, "turn": 1}
    assert body["boxes"][0]["x_min"] == pytest.approx(100, abs=2)
    assert body["boxes"][0]["y_max"] == pytest.approx(100, abs=2)


def drawn(page: Page) -> list[float]:
    """x, y, width and height of the only focus box."""
    rect: Any = page.locator("#boxes rect.focus")
    return list(rect.evaluate("e => ['x', 'y', 'width', 'height'].map((name) => Number(e.getAttribute(name)))"))


def test_a_box_is_moved_by_its_edge_and_resized_by_its_handles_and_all_of_it_undone(page: Page) -> None:
    drag(page, (0.3, 0.3), (0.6, 0.6))
    first = drawn(page)
    drag(page, (0.6, 0.6), (0.7, 0.8))  # the lower right handle
    x, y, width, height = drawn(page)
    assert (x, y) == pytest.approx(tuple(first[:2]), abs=0.5)
    assert width > 1.25 * first[2] and height > 1.5 * first[3]
    wide = drawn(page)
    drag(page, (0.3, 0.4), (0.2, 0.3))  # the left edge, away from handles
    x, y, width, height = drawn(page)
    assert (width, height) == pytest.approx(tuple(wide[2:]), abs=0.01)
    assert x < wide[0] and y < wide[1]
    moved = drawn(page)
    for expected in (wide, first):
        page.keyboard.press("Control+z")
        settled(page)
        assert drawn(page) == expected
    page.keyboard.press("Control+z")
    expect(page.locator("#boxes rect.focus")).to_have_count(0)
    for _ in range(3):
        page.keyboard.press("Control+Shift+z")
        settled(page)
    assert drawn(page) == moved
    expect(page.get_by_role("button", name="Redo")).to_be_disabled()
    frame: Any = page.locator("#image-frame").bounding_box()
    page.mouse.click(frame["x"] + 0.4 * frame["width"], frame["y"] + 0.4 * frame["height"])  # a tap inside selects it
    page.keyboard.press("Delete")
    expect(page.locator("#boxes rect.focus")).to_have_count(0)


def test_a_reload_and_another_study_lose_nothing(page: Page) -> None:
    drag(page, (0.3, 0.3), (0.6, 0.6))
    say(page, "mass", "rejected")
    page.keyboard.press("v")
    page.keyboard.press("+")
    numbers, box, address = page.locator("#classes").inner_text(), drawn(page), page.url
    zoomed: Any = page.locator("#image-frame").bounding_box()
    page.reload()
    settled(page)
    assert page.locator("#classes").inner_text() == numbers and drawn(page) == box
    open_sample(page, 2)
    expect(page.locator("#boxes rect.focus")).to_have_count(0)
    expect(page.locator("#invert")).not_to_be_checked()
    page.goto(address)
    settled(page)
    assert page.locator("#classes").inner_text() == numbers and drawn(page) == box
    expect(page.locator("#invert")).to_be_checked()
    again: Any = page.locator("#image-frame").bounding_box()
    assert again["width"] == pytest.approx(zoomed["width"], rel=0.02)
    page.get_by_role("button", name="Undo").click()
    settled(page)
    expect(word(page, "mass", "none")).to_be_checked()
    kept = page.evaluate("JSON.stringify(localStorage)")
    assert "sample 1" not in kept and "data:" not in kept


def test_the_latest_request_wins(page: Page) -> None:
    stuck: list[Route] = []
    page.route("**/interactions", lambda route: route.continue_() if stuck else stuck.append(route))
    word(page, "mass", "rejected").check()
    body = sent(page, lambda: word(page, "nodule", "confirmed").check())
    assert (body["confirmed"], body["rejected"]) == (["nodule"], ["mass"])
    expect(word(page, "mass", "rejected")).to_be_checked()
    expect(word(page, "nodule", "confirmed")).to_be_checked()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.unroute_all(behavior="ignoreErrors")


def test_a_map_says_its_scale_and_shows_nothing_below_the_absent_level(page: Page, served: Service) -> None:
    digest = page.url.rsplit("/", 1)[1]
    maps = served.plane.maps(digest)
    for name, level, own in zip(maps.concepts, maps.absent, maps.maps, strict=True):
        page.locator(f'[data-concept="{name}"]').click()
        expect(page.locator("#map-name")).to_contain_text(name.replace("_", " "))
        expect(page.locator("#map-limit")).to_have_text(f"absent {level:.2f} · {maps.limit:.2f}")
        if np.max(own) > level:
            expect(page.locator("#map-nothing")).to_be_hidden()
        else:
            expect(page.locator("#map-nothing")).to_contain_text("Nothing is drawn")


def test_a_key_hides_boxes_and_keys_are_listed(page: Page) -> None:
    page.get_by_role("button", name="Add box").click()
    settled(page)
    page.keyboard.press("h")
    expect(page.locator("#boxes rect.focus")).to_have_count(0)
    page.keyboard.press("h")
    expect(page.locator("#boxes rect.focus")).to_have_count(1)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Hide or show the boxes")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_a_reading_is_signed_and_superseded(page: Page, served: Service) -> None:
    say(page, "mass", "rejected")
    page.get_by_role("button", name="Sign…").click()
    page.get_by_label("Comment").fill("no mass that I can see")
    with page.expect_request("**/readings") as request:
        page.get_by_role("button", name="Sign", exact=True).click()
    body: Any = request.value.post_data_json
    assert (body["decision"], body["state"]["rejected"]) == ("keep", ["mass"])
    assert request.value.headers["idempotency-key"]
    signed = page.locator("#signed")
    expect(signed).to_contain_text("You signed this reading")
    expect(signed).not_to_contain_text("not signed")
    say(page, "nodule", "rejected")
    expect(signed).to_contain_text("What you changed since is not signed")
    page.keyboard.press("Control+Enter")
    page.get_by_label("Revert to the prediction").check()
    page.get_by_role("button", name="Sign", exact=True).click()
    expect(signed).not_to_contain_text("not signed")
    readings = [entry for entry in served.store.ledger.entries() if entry["kind"] == "reading"]
    assert [each["body"]["request"]["decision"] for each in readings[-2:]] == ["keep", "revert"]


def test_a_study_is_skipped_with_a_reason_and_the_next_one_comes(page: Page, served: Service) -> None:
    open_sample(page, 3)
    here = page.url
    page.get_by_role("button", name="Skip…").click()
    page.get_by_label("Not my field").check()
    page.get_by_role("button", name="Skip", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    skips = [entry for entry in served.store.ledger.entries() if entry["kind"] == "skip"]
    assert skips[-1]["body"]["request"]["reason"] == "Not my field"
    expect(page).not_to_have_url(here)
    settled(page)


def test_a_reading_is_saved_as_a_picture_and_as_numbers(page: Page) -> None:
    drag(page, (0.2, 0.2), (0.5, 0.5))
    for entry, end in (("Picture (PNG)", ".png"), ("Reading (JSON)", ".json")):
        page.locator("#export summary").click()
        expect(page.locator("#export")).to_contain_text("only for studies that came as DICOM")
        with page.expect_download() as download:
            page.get_by_role("button", name=entry).click()
        assert download.value.suggested_filename.endswith(end)
        data = download.value.path().read_bytes()
    saved = json.loads(data)
    assert saved["state"]["boxes"][0]["kind"] == "focus" and saved["after"]["classes"] != saved["before"]["classes"]


def test_hints_are_ticked_and_can_be_hidden(page: Page) -> None:
    hints = page.locator("#hints")
    expect(hints.locator("[aria-current=step]")).to_contain_text("See what the model says")
    page.locator("[data-concept]").first.click()
    expect(hints.locator("[aria-current=step]")).to_contain_text("Tell it what it missed")
    say(page, "mass", "rejected")
    expect(hints.locator("[aria-current=step]")).to_contain_text("Sign your reading")
    page.get_by_role("button", name="Hide these hints").click()
    expect(hints).to_be_hidden()
    page.get_by_role("button", name="Hints").click()
    expect(hints).to_be_visible()


@pytest.mark.parametrize("width", [360, 820, 1280])
def test_nothing_overflows_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    say(page, "mass", "rejected")
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inner = page.evaluate("document.querySelector('.concepts').getBoundingClientRect().right")
    assert inner <= page.evaluate("document.querySelector('.results').getBoundingClientRect().right")


def test_nobody_gets_in_without_a_key_and_out_is_out(browser: Browser, url: str, key: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(url)
    assert page.url == f"{url}/sign-in"
    page.get_by_label("Your key").fill("csr_" + "x" * 43)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("mistyped, or revoked")
    sign_in(page, url, key)
    expect(page.get_by_role("link", name="Worklist", exact=True)).to_be_visible()
    assert "csr_" not in page.evaluate("document.cookie")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{url}/sign-in")
    page.goto(url)
    assert page.url == f"{url}/sign-in"
    page.close()
