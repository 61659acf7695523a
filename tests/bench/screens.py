"""``make screens``: pictures of each view of the page, and a short recording of a reading, in a real browser.

A server over the bundle gets its samples as a worklist, some of which a second reader has signed; then every view is
pictured at 1440×900 and at 820×1180, and one reading is recorded as an animation.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.core.intake import Upload
from serving.store.entries import Caller
from tests.serving.conftest import make_service
from tests.serving.interfaces.browser import FLAGS, TALL, WIDE, Room, listening
from tests.serving.interfaces.reading import Reading

SIZES = {"1440x900": WIDE, "820x1180": TALL}
FRAME = {"width": 1200, "height": 750}
MOST_BYTES = 3 << 20


@contextmanager
def opened_room(bundle: Path) -> Iterator[Room]:
    """A server over a bundle, in a folder that goes away, and a browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("screens: a browser is needed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        service = make_service(bundle, Path(folder))
        with listening(service) as url:
            room = Room(service, url, browser)
            yield room
            problems = room.leave()
        service.close()
        browser.close()
    for problem in problems:
        print(f"screens: the browser complained: {problem}", file=sys.stderr)
