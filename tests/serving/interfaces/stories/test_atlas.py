"""Reviewers of the atlas: a draft, what it would do, a signature, and what becomes of it in the next model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from playwright.sync_api import Page, expect

from csr.bundle.format import Bundle
from serving.access.roles import Role
from tests.serving.conftest import make_service, serve_instead
from tests.serving.interfaces.browser import Room, opened_room
from tests.serving.interfaces.reading import Reading


def opened(room: Room, name: str = "reviewer", role: Role = Role.REVIEWER) -> Page:
    page = room.enter(name, role, "/#/atlas")
    expect(page.get_by_role("heading", name="Atlas review")).to_be_visible()
    expect(page.locator(".choose").first).to_be_visible()
    return page


def card(page: Page, concept: str, index: int) -> Any:
    return page.locator(f'.choose[data-key="{concept}/{index}"]')


def test_a_prototype_is_looked_at_rejected_previewed_and_signed(room: Room, bundle: Bundle) -> None:
    page = opened(room)
    concepts = bundle.manifest.concepts
    page.get_by_role("radio", name="All", exact=True).check(force=True)
    expect(page.locator(".choose")).to_have_count(len(concepts) * bundle.manifest.per_concept)
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
        panel.locator(".verdict-form").get_by_role("button", name="Reject").click()
    preview: Any = previewed.value.json()
    panel.get_by_label("an artefact or a shortcut").check()
    panel.get_by_role("textbox", name="Note").fill("a clip")
    panel.get_by_role("textbox", name="Note").blur()
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
    (entry,) = room.entries("review")
    said = entry["body"]["request"]["reviews"]
    assert [(each["concept"], each["index"], each["verdict"]) for each in said] == [
        (concept, 0, "keep"),
        (concept, 1, "keep"),
    ]


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
    expect(page.get_by_text("signing needs the role of a reviewer")).to_be_visible()
    expect(page.get_by_role("button", name="Sign 1 review")).to_have_count(0)


def reject(page: Page, concept: str, index: int) -> None:
    """Says it and signs it."""
    card(page, concept, index).click()
    page.locator(".detail .verdict-form").get_by_role("button", name="Reject").click()
    page.get_by_role("button", name="Sign 1 review").click()
    expect(page.get_by_role("status").filter(has_text="1 review is on record.")).to_be_visible()


def test_where_two_must_agree_one_reviewer_only_proposes(bundle: Bundle, browser: Any, tmp_path: Path) -> None:
    service = make_service(bundle.path, tmp_path / "state", review={"second_reader": True})
    concept = bundle.manifest.concepts[0]
    with opened_room(service, browser) as room:
        one = opened(room, "rev-one")
        reject(one, concept, 0)
        expect(card(one, concept, 0)).to_contain_text("needs a second reader")
        two = opened(room, "rev-two")
        card(two, concept, 0).click()
        expect(two.locator(".record")).to_contain_text("It counts once another reviewer says the same")
        reject(two, concept, 0)
        expect(card(two, concept, 0)).to_contain_text("rejected")
        one.reload()
        expect(card(one, concept, 0)).to_contain_text("rejected")


def test_what_is_agreed_leaves_the_next_model_without_the_prototype(
    room: Room, bundle: Bundle, tiny_run: Any, tmp_path: Path
) -> None:
    from csr.bundle.atlas import build_atlas
    from csr.bundle.writing import ExportConfig, Provenance, write_bundle
    from csr.interaction.review import prune

    page = opened(room)
    reading = Reading.of_sample(room, room.enter("reader"), bundle, 1)
    shown = reading.page.locator("#exemplars li.exemplar").first
    concept = reading.page.locator('[data-concept][aria-pressed="true"]').get_attribute("data-concept") or ""
    text = shown.inner_text()
    index = int(re.findall(r"prototype (\d+)", text)[0])
    reject(page, concept, index)

    answer = page.context.request.get(f"{room.url}/v1/reviews").json()
    agreed = {(each["concept"], each["index"]) for each in answer["reviews"] if each["status"] == "agreed"}
    assert agreed == {(concept, index)}
    concepts, each_has = bundle.manifest.concepts, bundle.manifest.per_concept
    table = pd.DataFrame([(name, k) for name in concepts for k in range(each_has)], columns=["concept", "index"])
    table["prune"] = [(name, k) in agreed for name, k in zip(table["concept"], table["index"], strict=True)]
    refined = prune(tiny_run.csr, table)
    origin = Provenance("robust", tiny_run.data.digest(), "test", {"iid": {"macro_f1": 0.5}})
    atlas = build_atlas(tiny_run.data, tiny_run.cache, refined)
    after, _ = write_bundle(tmp_path / "bundle", tiny_run.data, tiny_run.cache, refined, atlas, ExportConfig(), origin)
    serve_instead(room.service, after)

    page.reload()
    page.get_by_role("radio", name="All", exact=True).check(force=True)
    expect(card(page, concept, index)).to_contain_text("gone already")
    preview = page.context.request.post(
        f"{room.url}/v1/atlas/preview",
        data={"pruned": [{"concept": concept, "index": index}]},
        headers={"Origin": room.url},
    ).json()
    assert preview["changed"] == 0 and preview["before"] == preview["after"]  # there is nothing left to take out
    again = Reading.of_sample(room, room.enter("another"), bundle, 1)
    again.page.locator(f'[data-concept="{concept}"]').click()
    expect(again.page.locator("#exemplars")).not_to_contain_text(re.compile(rf"prototype {index}\b"))
