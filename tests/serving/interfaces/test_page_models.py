"""The models in a real browser: cards, metrics, the same study side by side, history, the way back."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.core.intake import Upload
from serving.engines import OrtEngine
from serving.models.in_service import Challenge, Model
from serving.store.entries import Caller
from tests.serving.interfaces.browser import Room, accessibility_faults

MODELS = "/#/models"


def add_study(room: Room, data: bytes) -> str:
    return room.service.plane.add_studies([Upload(data)], Caller("tester", "test"))[0].digest


def enter(room: Room, role: Role = Role.READER, **options: Any) -> Page:
    page = room.enter(role=role, path=MODELS, **options)
    expect(page.locator("#model-champion")).to_be_visible()
    return page


def challenge(room: Room, bundle: Bundle) -> None:
    """Puts the same bundle on trial, as if it had measured better."""
    metrics = copy.deepcopy(bundle.manifest.metrics)
    part = next(iter(metrics))
    metrics[part]["macro_f1"] = metrics[part]["macro_f1"] + 0.1
    other = Bundle(bundle.path, replace(bundle.manifest, metrics=metrics))
    room.service.models.challenge_with(Challenge(Model(other, OrtEngine(other), "7"), "shadow"))


def test_the_champion_has_a_card_and_its_metrics(room: Room, bundle: Bundle) -> None:
    page = enter(room)
    card = page.locator("article.champion")
    manifest = bundle.manifest
    for text in (manifest.backbone, manifest.data, manifest.preset, "not a medical device"):
        expect(card).to_contain_text(text)
    for each in (*manifest.concepts, *manifest.classes):
        expect(card).to_contain_text(each.replace("_", " "))
    part = next(iter(manifest.metrics))
    table = page.locator("table.metrics").first
    expect(table.get_by_role("row", name="Macro F1")).to_contain_text(f"{manifest.metrics[part]['macro_f1']:.3f}")
    expect(page.locator(".card.absent")).to_contain_text("No challenger is in service")
    expect(page.locator("table.history")).to_contain_text("in service")
    assert accessibility_faults(page) == []


def test_two_models_are_shown_side_by_side_on_the_same_study(room: Room, bundle: Bundle, sample: bytes) -> None:
    digest = add_study(room, sample)
    challenge(room, bundle)
    page = enter(room)
    expect(page.locator("article.challenger")).to_contain_text("version 7")
    part = next(iter(bundle.manifest.metrics))
    better = bundle.manifest.metrics[part]["macro_f1"] + 0.1
    row = page.locator("table.metrics").first.get_by_role("row", name="Macro F1")
    expect(row).to_contain_text(f"{better:.3f}")
    expect(row).to_contain_text("+0.100 better")
    compared = page.locator(".compared")
    expect(compared).to_contain_text("Both say:")
    expect(compared.locator("h4")).to_have_text(["As predicted"])
    said = page.request.post(f"{room.url}/v1/studies/{digest}/compare", data={}).json()
    for each in said["challenger"]["before"]["classes"]:
        line = compared.get_by_role("row", name=each["name"].replace("_", " ")).first
        expect(line).to_contain_text(f"{round(100 * each['probability'])} %")
    assert accessibility_faults(page) == []


def test_what_the_reader_signed_is_applied_to_both(room: Room, bundle: Bundle, sample: bytes) -> None:
    digest = add_study(room, sample)
    challenge(room, bundle)
    page = enter(room)
    concept = bundle.manifest.concepts[0]
    signed = {"state": {"rejected": [concept]}, "decision": "keep"}
    assert page.request.post(f"{room.url}/v1/studies/{digest}/readings", data=signed).status == 201
    with page.expect_request("**/compare") as asked:
        page.reload()
    assert asked.value.post_data_json["rejected"] == [concept]
    expect(page.locator(".compared h4")).to_have_text(["As predicted", "With what you signed"])


def test_without_studies_the_page_says_where_to_get_some(room: Room) -> None:
    page = enter(room)
    page.get_by_role("link", name="Add some in the worklist").click()
    expect(page.locator("#worklist-title")).to_be_visible()


def test_only_administrators_roll_back_and_they_are_asked_first(room: Room) -> None:
    reader = enter(room)
    expect(reader.get_by_role("button", name="Roll back")).to_have_count(0)
    expect(reader.get_by_text("Administrators can roll back")).to_be_visible()
    page = room.enter("chief", Role.ADMIN, MODELS)
    page.locator("#rollback").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Roll back the champion?")
    expect(page.locator("#rollback-reason")).to_be_focused()
    assert accessibility_faults(page) == []
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "rollback" in request.url else None)
    page.locator("#rollback-confirm").click()
    assert sent == [], "a reason is asked for"
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()


def test_a_rollback_that_is_refused_says_why_and_keeps_the_reason(room: Room) -> None:
    page = room.enter("chief", Role.ADMIN, MODELS)
    page.locator("#rollback").click()
    page.locator("#rollback-reason").fill("it misses nodules")
    with page.expect_response("**/v1/models/rollback") as answered:
        page.locator("#rollback-confirm").click()
    assert answered.value.status == 409
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text(answered.value.json()["error"]["message"])
    expect(page.locator("#rollback-reason")).to_have_value("it misses nodules")


def test_a_rollback_that_was_done_is_said(room: Room) -> None:
    page = room.enter("chief", Role.ADMIN, MODELS)
    page.locator("#rollback").click()
    page.locator("#rollback-reason").fill("it misses nodules")
    done = {"from": "3", "to": "2", "at": "2026-01-01T00:00:00Z"}
    page.route("**/v1/models/rollback", lambda route: route.fulfill(json=done))
    with page.expect_request("**/v1/models/rollback") as asked:
        page.locator("#rollback-confirm").click()
    assert asked.value.post_data_json == {"reason": "it misses nodules"}
    expect(page.get_by_text("Rolled back from version 3 to version 2.")).to_be_visible()
    expect(page.get_by_role("dialog")).to_be_hidden()


@pytest.mark.parametrize("width", [360, 820, 1440])
def test_nothing_overflows_sideways(room: Room, bundle: Bundle, sample: bytes, width: int) -> None:
    add_study(room, sample)
    challenge(room, bundle)
    page = enter(room, viewport={"width": width, "height": 900})
    expect(page.locator(".compared table").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
