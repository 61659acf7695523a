"""The review of the atlas in a real browser: what is shown, a draft, its effect, the signature, two reviewers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from csr.bundle.format import Bundle
from serving.access.roles import Role
from tests.serving.conftest import make_service
from tests.serving.interfaces.browser import Room, accessibility_faults, opened_room

ATLAS = "/#/atlas"


@pytest.fixture
def pairs(bundle: Bundle, browser: Browser, tmp_path: Path) -> Iterator[Room]:
    """A server where a rejection needs two reviewers."""
    service = make_service(bundle.path, tmp_path / "pairs", review={"second_reader": True})
    with opened_room(service, browser) as room:
        yield room


def keys(bundle: Bundle) -> list[str]:
    """The prototypes in use, as the page names them."""
    return [f"{entry.concept}/{entry.index}" for entry in bundle.atlas() if entry.alive]


def card(page: Page, key: str) -> Locator:
    return page.locator(f'.choose[data-key="{key}"]')


def reviewer(room: Room, name: str = "reviewer", **options: Any) -> Page:
    page = room.enter(name, Role.REVIEWER, ATLAS, **options)
    expect(page.locator(".choose").first).to_be_visible()
    return page


def say(page: Page, key: str, verdict: str) -> None:
    """Drafts a verdict on one prototype."""
    card(page, key).click()
    page.locator(".detail .verdict-form").get_by_role("button", name=verdict).click()


def reviewed(room: Room) -> list[dict[str, Any]]:
    """What is on record, review by review."""
    return [each for entry in room.entries("review") for each in entry["body"]["request"]["reviews"]]


def test_each_prototype_in_use_is_shown_with_what_it_does(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    expect(page.locator(".choose")).to_have_count(len(keys(bundle)))
    entry = next(entry for entry in bundle.atlas() if entry.alive)
    key = f"{entry.concept}/{entry.index}"
    card(page, key).click()
    detail = page.locator(".detail")
    expect(detail.get_by_role("heading", level=2)).to_have_text(re.compile(f"prototype {entry.index}$"))
    expect(detail.locator(".crops img")).to_have_count(len(entry.sources))
    expect(detail.locator(".crops")).to_contain_text(entry.sources[0].study_id)
    expect(detail.locator(".weights tr")).to_have_count(len(bundle.manifest.classes))
    expect(detail.locator("canvas.places")).to_be_visible(timeout=60_000)
    known = page.request.get(f"{room.url}/v1/atlas/{entry.concept}/{entry.index}").json()
    expect(detail.locator(".similar li")).to_have_count(len(known["similar"]))
    rows = detail.locator(".decides tbody tr")
    expect(rows).to_have_count(len(known["decides"]))
    drawn = detail.locator("canvas.places").evaluate("canvas => [canvas.width, canvas.height]")
    assert drawn == [len(known["places"][0]), len(known["places"])]
    if known["maps"]:
        with page.expect_response(lambda answer: "map=true" in answer.url) as answered:
            detail.get_by_label("Show where it fires").check()
        assert answered.value.ok
    assert accessibility_faults(page) == []


def test_the_effect_is_shown_before_signing_and_the_signature_puts_all_on_record(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    first, second = keys(bundle)[:2]
    basket = page.locator(".basket")
    expect(basket).to_be_hidden()
    with page.expect_response("**/v1/atlas/preview", timeout=60_000) as answered:  # the first one loads scikit-learn
        say(page, first, "Reject")
    told = answered.value.json()
    assert answered.value.request.post_data_json == {"pruned": [name(first)]}
    expect(basket).to_contain_text(f"{told['before']['macro_f1']:.3f} → {told['after']['macro_f1']:.3f}")
    expect(basket).to_contain_text(f"{told['changed']} of {told['studies']} validation studies")
    if told["before"]["pointing"] is not None:
        expect(basket).to_contain_text(f"{told['before']['pointing']:.3f} → {told['after']['pointing']:.3f}")
    page.locator(".detail").get_by_label("an artefact or a shortcut").check()
    page.locator("#verdict-comment").fill("a clip in the corner")
    say(page, second, "Keep")
    expect(card(page, first)).to_contain_text("not signed")
    assert reviewed(room) == []
    assert accessibility_faults(page) == []
    basket.get_by_role("button", name="Sign 2 reviews").click()
    expect(page.get_by_text("2 reviews are on record.")).to_be_visible()
    expect(card(page, first).locator(".mark")).to_have_text("rejected")
    expect(card(page, second).locator(".mark")).to_have_text("kept")
    assert {(each["concept"], each["index"], each["verdict"], each["reason"]) for each in reviewed(room)} == {
        (*split(first), "prune", "artefact"),
        (*split(second), "keep", "none"),
    }
    assert {each["comment"] for each in reviewed(room)} == {"a clip in the corner", ""}
    card(page, first).click()
    expect(page.locator(".record")).to_contain_text("a clip in the corner")
    expect(page.locator(".record")).to_contain_text("reviewer rejected it (an artefact or a shortcut)")


def test_a_draft_outlasts_a_reload_and_another_view(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    first = keys(bundle)[0]
    say(page, first, "Reject")
    page.locator("#verdict-comment").fill("half said")
    page.get_by_role("link", name="Worklist", exact=True).click()
    expect(page.locator("#worklist-title")).to_be_visible()
    page.reload()
    page.get_by_role("link", name="Atlas").click()
    expect(card(page, first)).to_contain_text("reject (not signed)")
    card(page, first).click()
    expect(page.locator("#verdict-comment")).to_have_value("half said")
    page.locator(".basket").get_by_role("button", name="Discard").click()
    expect(card(page, first).locator(".mark")).to_have_text("not reviewed")
    expect(page.locator(".basket")).to_be_hidden()


def test_a_signature_whose_answer_was_lost_is_put_on_record_once(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    first = keys(bundle)[0]
    say(page, first, "Reject")

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/v1/reviews", lambda route: lose(route) if route.request.method == "POST" else route.continue_())
    page.locator("#atlas-sign").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(card(page, first)).to_contain_text("reject (not signed)")
    page.unroute("**/v1/reviews")
    page.locator("#atlas-sign").click()
    expect(card(page, first).locator(".mark")).to_have_text("rejected")
    assert len(room.entries("review")) == 1


def test_several_are_picked_and_get_the_same_word(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    picked = keys(bundle)[:3]
    for key in picked:
        page.locator(f'[data-pick="{key}"]').check()
    bulk = page.locator(".bulk")
    expect(bulk).to_contain_text("3 prototypes picked")
    bulk.get_by_role("button", name="Reject").click()
    bulk.get_by_label("not typical of the concept").check()
    for key in picked:
        expect(card(page, key)).to_contain_text("reject (not signed)")
    assert accessibility_faults(page) == []
    page.locator("#atlas-sign").click()
    expect(bulk).to_be_hidden()
    assert {(each["concept"], each["index"]) for each in reviewed(room)} == {split(key) for key in picked}
    assert {(each["verdict"], each["reason"]) for each in reviewed(room)} == {("prune", "not_typical")}


def test_a_duplicate_is_merged_into_a_similar_one_by_a_note(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    first = keys(bundle)[0]
    card(page, first).click()
    concept, index = split(first)
    (other, *_) = page.request.get(f"{room.url}/v1/atlas/{concept}/{index}").json()["similar"]
    title = f"{other['concept'].replace('_', ' ')} {other['index']}"
    page.get_by_role("button", name=f"duplicate of {title}").click()
    expect(page.locator(".detail").get_by_label("a duplicate of another prototype")).to_be_checked()
    expect(page.locator("#verdict-comment")).to_have_value(f"the same as {title}")


def test_a_rejection_counts_once_two_reviewers_said_it(pairs: Room, bundle: Bundle) -> None:
    one, other = reviewer(pairs, "first"), reviewer(pairs, "second")
    expect(one.locator(".head")).to_contain_text("counts once two reviewers")
    agreed, disputed = keys(bundle)[:2]
    for key in (agreed, disputed):
        say(one, key, "Reject")
    one.locator("#atlas-sign").click()
    expect(card(one, agreed).locator(".mark")).to_have_text("needs a second reader")
    other.reload()
    expect(card(other, agreed).locator(".mark")).to_have_text("needs a second reader")
    other.get_by_role("radio", name="Undecided").check(force=True)
    expect(other.locator(".choose")).to_have_count(2)
    say(other, agreed, "Reject")
    say(other, disputed, "Keep")
    other.locator("#atlas-sign").click()
    expect(other.get_by_text("2 reviews are on record.")).to_be_visible()
    other.get_by_role("radio", name="In use").check(force=True)
    expect(card(other, agreed).locator(".mark")).to_have_text("rejected")
    expect(card(other, disputed).locator(".mark")).to_have_text("readers differ")
    card(other, disputed).click()
    expect(other.locator(".record li")).to_have_count(2)


def test_words_on_one_model_are_not_signed_for_another(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    say(page, keys(bundle)[0], "Reject")
    models = page.request.get(f"{room.url}/v1/models").json()
    models["models"][0]["digest"] = "f" * 64
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.locator("#atlas-sign").click()
    expect(page.get_by_role("alert").first).to_contain_text("Another model came into service meanwhile")
    assert room.entries("review") == []
    page.unroute("**/v1/models")
    page.reload()
    expect(card(page, keys(bundle)[0])).to_contain_text("reject (not signed)")


def test_who_may_only_look_is_told_so(room: Room, bundle: Bundle) -> None:
    page = room.enter(role=Role.READER, path=ATLAS)
    say(page, keys(bundle)[0], "Reject")
    expect(page.locator(".basket")).to_contain_text("signing needs the role of a reviewer")
    expect(page.locator("#atlas-sign")).to_have_count(0)


def test_what_the_server_refuses_to_reckon_is_said_and_signing_goes_on(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    error = {"error": {"code": "no_validation", "message": "this bundle holds no validation studies"}}
    page.route("**/v1/atlas/preview", lambda route: route.fulfill(status=409, json=error))
    say(page, keys(bundle)[0], "Reject")
    expect(page.locator(".basket")).to_contain_text("this bundle holds no validation studies")
    page.locator("#atlas-sign").click()
    expect(card(page, keys(bundle)[0]).locator(".mark")).to_have_text("rejected")


def test_the_atlas_needs_no_mouse(room: Room, bundle: Bundle) -> None:
    page = reviewer(room)
    first, second, third = keys(bundle)[:3]
    expect(card(page, first)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowRight")
    expect(card(page, second)).to_be_focused()
    page.keyboard.press("r")
    expect(card(page, second)).to_contain_text("reject (not signed)")
    expect(card(page, second)).to_be_focused()
    page.keyboard.press("c")
    page.keyboard.press("k")
    expect(card(page, second)).to_contain_text("keep (not signed)")
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    page.keyboard.press("r")
    expect(card(page, third)).to_contain_text("reject (not signed)")
    expect(card(page, second)).to_contain_text("reject (not signed)")
    page.locator(".detail").get_by_label("no reason given").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".detail").get_by_label("an artefact or a shortcut")).to_be_checked()
    expect(page.locator(".detail").get_by_label("an artefact or a shortcut")).to_be_focused()
    page.locator("#atlas-sign").press("Enter")
    expect(page.get_by_text("2 reviews are on record.")).to_be_visible()


@pytest.mark.parametrize("width", [360, 820, 1440])
def test_nothing_overflows_sideways(room: Room, bundle: Bundle, width: int) -> None:
    page = reviewer(room, viewport={"width": width, "height": 900})
    say(page, keys(bundle)[0], "Reject")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def split(key: str) -> tuple[str, int]:
    concept, _, index = key.rpartition("/")
    return concept, int(index)


def name(key: str) -> dict[str, Any]:
    concept, index = split(key)
    return {"concept": concept, "index": index}
