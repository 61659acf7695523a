from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from csr.bundle.format import Bundle
from tests.serving.conftest import make_service
from tests.serving.interfaces.browser import FLAGS, Room, opened_room


# One a module: while it is open there is an event loop in the main thread, which other tests cannot have.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "the page is tested in a real browser: apt-get install chromium"
    expect.set_options(timeout=30_000)  # decoders start with the first upload, and a busy machine takes its time
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def room(bundle: Bundle, browser: Browser, tmp_path: Path) -> Iterator[Room]:
    """A server over the tiny run's bundle with an empty store."""
    with opened_room(make_service(bundle.path, tmp_path / "state"), browser) as room:
        yield room
