"""One reader, one study: from the file to the signature, and what the ledger then holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, expect

from csr.bundle.format import Bundle
from tests.serving.interfaces.browser import Room
from tests.serving.interfaces.reading import Reading


def test_from_the_file_to_the_signature(room: Room, bundle: Bundle) -> None:
    page = room.enter()
    file: FilePayload = {
        "name": "film.png",
        "mimeType": "image/png",
        "buffer": (bundle.path / "samples/01.png").read_bytes(),
    }
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("link", name="film.png").click()
    reading = Reading(page)
    plain = reading.numbers()

    state = reading.draw((0.2, 0.2), (0.6, 0.6))
    assert len(state["boxes"]) == 1 and state["boxes"][0]["kind"] == "focus"
    boxed = reading.numbers()
    assert boxed != plain
    moved = reading.draw((0.2, 0.4), (0.3, 0.5))  # by its edge: it moves
    assert moved["boxes"][0]["x_min"] > state["boxes"][0]["x_min"]
    changed = reading.numbers()  # so small a model may show the same whole percents

    reading.undo()
    assert reading.numbers() == boxed
    reading.redo()
    assert reading.numbers() == changed
    reading.say("mass", "rejected")
    rejected = reading.numbers()
    assert reading.word("mass") == "rejected"
    reading.undo()
    assert reading.word("mass") == "none" and reading.numbers() == changed
    reading.redo()
    assert reading.word("mass") == "rejected" and reading.numbers() == rejected
    assert room.entries("reading") == []

    reading.sign("a hazy mass, no more")
    (entry,) = room.entries("reading")
    assert entry["study"] == reading.digest and entry["actor"].endswith("clinician")
    signed = entry["body"]["request"]
    assert signed["decision"] == "keep" and signed["comment"] == "a hazy mass, no more"
    assert signed["state"]["rejected"] == ["mass"]
    assert signed["state"]["boxes"][0]["x_min"] == pytest.approx(moved["boxes"][0]["x_min"])


def test_a_reading_is_signed_as_predicted_or_anew(room: Room, bundle: Bundle) -> None:
    reading = Reading.of_sample(room, room.enter(), bundle, 0)
    reading.say("mass", "rejected")
    reading.sign("first thought")
    reading.say("nodule", "rejected")
    reading.sign("second thought", decision="revert")
    first, second = room.entries("reading")
    signed = [each["body"]["request"] for each in (first, second)]
    assert [each["decision"] for each in signed] == ["keep", "revert"]
    assert signed[1]["state"]["rejected"] == ["mass", "nodule"]  # on record, though not applied
    answer = reading.page.context.request.get(f"{room.url}/v1/studies/{reading.digest}/readings").json()
    (last,) = answer["readings"]
    assert last["supersedes"] == first["number"] and last["record"]["number"] == second["number"]


def test_a_reload_loses_nothing(room: Room, bundle: Bundle) -> None:
    reading = Reading.of_sample(room, room.enter(), bundle, 1)
    reading.draw((0.2, 0.2), (0.6, 0.6))
    reading.say("mass", "rejected")
    numbers = reading.numbers()
    reading.undo()
    once = reading.numbers()
    reading.page.reload()
    reading.settle()
    assert reading.numbers() == once
    reading.redo()
    assert reading.numbers() == numbers
    reading.undo()
    reading.undo()
    expect(reading.boxes()).to_have_count(0)


def test_switching_studies_and_coming_back_loses_nothing(room: Room, bundle: Bundle) -> None:
    page = room.enter()
    one = Reading.of_sample(room, page, bundle, 1)
    one.draw((0.2, 0.2), (0.6, 0.6))
    numbers = one.numbers()
    other = Reading.of_sample(room, page, bundle, 0)
    expect(other.boxes()).to_have_count(0)
    other.say("mass", "confirmed")
    again = Reading.of_sample(room, page, bundle, 1)
    expect(again.boxes()).to_have_count(1)
    assert again.numbers() == numbers
    again.undo()
    expect(again.boxes()).to_have_count(0)
    assert Reading.of_sample(room, page, bundle, 0).word("mass") == "confirmed"


def test_nothing_unsaved_is_in_the_browser_but_what_was_said(room: Room, bundle: Bundle) -> None:
    reading = Reading.of_sample(room, room.enter(), bundle, 1)
    reading.draw((0.2, 0.2), (0.6, 0.6))
    kept = reading.page.evaluate("JSON.stringify({ ...localStorage })")
    assert reading.digest in kept and len(kept) < 20_000
    assert "data:image" not in kept and "blob:" not in kept
    reading.sign()
    reading.page.context.storage_state()


def test_two_readers_at_once_and_their_agreement(room: Room, bundle: Bundle, tmp_path: Path) -> None:
    one = Reading.of_sample(room, room.enter("dr-one"), bundle, 1)
    two = Reading.of_sample(room, room.enter("dr-two"), bundle, 1)
    one.say("mass", "confirmed")
    assert two.word("mass") == "none"  # nobody sees the other's
    two.say("mass", "rejected")
    one.sign("there is one")
    two.page.reload()
    two.settle()
    expect(two.page.locator("body")).not_to_contain_text("there is one")
    assert two.word("mass") == "rejected"
    two.sign("there is none")
    expect(two.page.locator("body")).to_contain_text("there is one")  # now that both have signed
    answer = two.page.context.request.get(f"{room.url}/v1/studies/{two.digest}/readings").json()
    assert answer["agreement"]["readers"] == 2 and answer["hidden"] == 0
    (mass,) = [each for each in answer["agreement"]["concepts"] if each["name"] == "mass"]
    assert (mass["confirmed"], mass["rejected"]) == (1, 1)
    assert len(room.entries("reading")) == 2
