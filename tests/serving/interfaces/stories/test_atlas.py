"""Reviewers of the atlas: a draft, what it would do, a signature."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Page, expect

from csr.bundle.format import Bundle
from serving.access.roles import Role
from tests.serving.interfaces.browser import Room


def opened(room: Room, name: str = "reviewer", role: Role = Role.REVIEWER) -> Page:
    page = room.enter(name, role, "/#/atlas")
    expect(page.get_by_role("heading", name="Atlas review")).to_be_visible()
    expect(page.locator("li.card").first).to_be_visible()
    return page


def card(page: Page, concept: str, index: int) -> Any:
    return page.locator(f'[data-key="{concept}/{index}"]')


def test_a_prototype_is_looked_at_rejected_previewed_and_signed(room: Room, bundle: Bundle) -> None:
    page = opened(room)
    concepts = bundle.manifest.concepts
    expect(page.locator("li.card")).to_have_count(len(concepts) * bundle.manifest.per_concept)
    concept = concepts[1]
    with page.expect_response(re.compile(f"/v1/atlas/{concept}/0$")) as answered:
        card(page, concept, 0).click()
    detail: Any = answered.value.json()
    panel = page.locator(".panel.detail")
    expect(
        panel.get_by_role("list", name="Training studies that it resembles most").locator("img").first
    ).to_be_visible()
    expect(panel).to_contain_text("Where it fires")
    expect(panel.locator(".similar li")).to_have_count(len(detail["similar"]))

    with page.expect_response("**/v1/atlas/preview") as previewed:
        panel.get_by_role("button", name="Reject").click()
    preview: Any = previewed.value.json()
    panel.get_by_label("an artefact or a shortcut").check()
    panel.get_by_label("Note").fill("a clip")
    panel.get_by_label("Note").blur()
    basket = page.get_by_role("region", name="What is to be signed")
    expect(basket).to_contain_text("To sign: 1 rejected, 0 kept")
    expect(basket).to_contain_text(f"{preview['before']['macro_f1']:.3f} → {preview['after']['macro_f1']:.3f}")
    expect(basket).to_contain_text(f"of {preview['studies']} validation studies")
    assert room.entries("review") == []

    page.reload()  # a draft is not lost
    expect(basket).to_contain_text("To sign: 1 rejected, 0 kept")
    basket.get_by_role("button", name="Sign 1 review").click()
    expect(page.get_by_role("status").filter(has_text="1 review is on record.")).to_be_visible()
    expect(card(page, concept, 0)).to_contain_text("rejected")
    (entry,) = room.entries("review")
    assert entry["actor"].endswith("reviewer")
    said = str(entry["body"])
    assert concept in said and "prune" in said and "artefact" in said and "a clip" in said
    page.reload()
    expect(card(page, concept, 0)).to_contain_text("rejected")


def test_several_are_reviewed_at_once_and_what_is_discarded_is_gone(room: Room, bundle: Bundle) -> None:
    page = opened(room)
    concept = bundle.manifest.concepts[0]
    for index in (0, 1):
        page.get_by_label(re.compile(f"^Pick .*prototype {index}$")).first.check(force=True)
    bulk = page.locator(".bulk")
    expect(bulk).to_contain_text("2 prototypes picked")
    bulk.get_by_role("button", name="Reject").click()
    basket = page.get_by_role("region", name="What is to be signed")
    expect(basket).to_contain_text("To sign: 2 rejected, 0 kept")
    basket.get_by_role("button", name="Discard").click()
    expect(basket).to_be_hidden()
    bulk.get_by_role("button", name="Keep").click()
    basket.get_by_role("button", name="Sign 2 reviews").click()
    expect(card(page, concept, 0)).to_contain_text("kept")
    expect(card(page, concept, 1)).to_contain_text("kept")
    assert len(room.entries("review")) == 2


def test_by_keys_alone(room: Room, bundle: Bundle) -> None:
    page = opened(room)
    concept = bundle.manifest.concepts[0]
    page.keyboard.press("ArrowRight")
    expect(card(page, concept, 1)).to_be_focused()
    page.keyboard.press("r")
    expect(card(page, concept, 1)).to_contain_text("reject (not signed)")
    page.keyboard.press("c")
    expect(card(page, concept, 1)).to_contain_text("not reviewed")
    page.keyboard.press("k")
    expect(card(page, concept, 1)).to_contain_text("keep (not signed)")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_contain_text("Reject it")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_a_reader_may_look_but_not_sign(room: Room) -> None:
    page = opened(room, "onlooker", Role.READER)
    page.keyboard.press("r")
    sign = page.get_by_role("button", name="Sign 1 review")
    expect(sign).to_be_disabled()
    expect(sign).to_have_attribute("title", re.compile("role of a reviewer"))
