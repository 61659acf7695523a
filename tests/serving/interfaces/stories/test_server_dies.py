"""A server that is killed in the middle of a reading and comes back: the page says so, waits, and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from csr.bundle.format import Bundle
from serving.store import Store
from tests.serving.interfaces.browser import guest, sign_in
from tests.serving.interfaces.reading import Reading
from tests.serving.interfaces.served_process import ServedProcess, key_for


@pytest.fixture
def server(bundle: Bundle, tmp_path: Path) -> Iterator[ServedProcess]:
    server = ServedProcess(bundle.path, tmp_path)
    yield server
    server.kill()


def test_a_reading_outlives_its_server(browser: Browser, bundle: Bundle, server: ServedProcess, tmp_path: Path) -> None:
    key = key_for(bundle.path, tmp_path, "clinician")
    server.start()
    reader = guest(browser, server.url)
    page = reader.page()
    sign_in(page, server.url, key)
    page.locator("input[type=file]").set_input_files(bundle.path / "samples/01.png")
    page.get_by_role("link", name="01.png").click()
    reading = Reading(page)
    reading.draw((0.2, 0.2), (0.6, 0.6))
    before = reading.numbers()

    server.kill()
    reading.choose("mass", "rejected")
    away = page.get_by_role("alert").filter(has_text="The server does not answer")
    expect(away).to_be_visible()
    expect(away).to_contain_text("kept")
    reading.sketch((0.5, 0.5), (0.8, 0.8))  # the reader goes on
    expect(reading.boxes()).to_have_count(2)

    server.start()
    expect(away).to_be_hidden(timeout=30_000)
    reading.settle()
    expect(reading.boxes()).to_have_count(2)
    assert reading.word("mass") == "rejected"
    after = reading.numbers()
    page.reload()
    reading.settle()
    assert reading.numbers() == after
    reading.undo()
    reading.undo()
    assert reading.numbers() == before
    reading.redo()
    reading.redo()

    server.kill()
    reading.begin_to_sign("after two deaths")
    expect(away).to_be_visible()
    server.start()
    reading.expect_signed()
    assert reader.problems == []
    reader.context.close()
    server.kill()

    store = Store.open(f"sqlite:///{tmp_path}/store.db", (tmp_path / "ledger.key").read_bytes().strip())
    assert store.ledger.verify().faults == ()
    (entry,) = [each for each in store.ledger.entries() if each["kind"] == "reading"]  # and no second one
    signed = entry["body"]["request"]
    assert signed["comment"] == "after two deaths"
    assert signed["state"]["rejected"] == ["mass"] and len(signed["state"]["boxes"]) == 2
    store.database.close()
