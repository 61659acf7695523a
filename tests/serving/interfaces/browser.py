"""A real Chromium against a real server: what the tests of the page stand on.

A reader enters with a key, in a browser context of its own, and is watched: an error on the console, anything that the
content security policy refused, and any request to another host fails the test.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page

from serving.access.roles import Role
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = {"width": 1440, "height": 900}
TALL = {"width": 820, "height": 1180}
AXE = Path(__file__).parents[3] / "infra/page/node_modules/axe-core/axe.min.js"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
_TELL_REFUSALS = """document.addEventListener("securitypolicyviolation", (event) =>
    window.tellRefusal(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));"""


@contextmanager
def listening(service: Service, port: int = 0) -> Iterator[str]:
    """The address of a server over a service."""
    config = uvicorn.Config(create_server(service), port=port, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass
class Guest:
    """One reader's browser context, and what went wrong in it."""

    context: BrowserContext
    url: str
    refused: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def page(self) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._note(request.url))
        return page

    def _note(self, address: str) -> None:
        if not address.startswith((self.url, "blob:", "data:")):
            self.strangers.append(address)

    @property
    def problems(self) -> list[str]:
        """A refusal that the page expects is logged by the browser itself."""
        errors = [text for text in self.errors if "Failed to load resource" not in text]
        return [*errors, *self.refused, *(f"asked another host: {address}" for address in self.strangers)]


def guest(browser: Browser, url: str, **options: Any) -> Guest:
    """A context that is watched."""
    context = browser.new_context(**({"viewport": WIDE} | options))
    context.set_default_timeout(60_000)
    guest = Guest(context, url)
    context.expose_function("tellRefusal", lambda text: guest.refused.append(text))
    context.add_init_script(_TELL_REFUSALS)
    return guest


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(url)
    page.get_by_label("Your key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda address: not address.endswith("/sign-in"))


@dataclass
class Room:
    """A server with a store of its own, and the browser that its readers use."""

    service: Service
    url: str
    browser: Browser
    guests: list[Guest] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)

    def enter(self, name: str = "clinician", role: Role = Role.READER, path: str = "/", **options: Any) -> Page:
        """A page of somebody who has signed in, in a browser of their own; the same name is the same person. Options
        are those of a browser context, such as has_touch."""
        page = self._guest(options).page()
        if name not in self.keys:
            self.keys[name] = self.service.keys.create(name, role)[1]
        sign_in(page, self.url, self.keys[name])
        if path != "/":
            page.goto(self.url + path)
        return page

    def knock(self) -> Page:
        """The page that somebody sees who has not signed in. It was never signed in: a page that has lost its session
        goes to the sign-in by itself, and would cross what the test asks of it."""
        page = self._guest({}).page()
        page.goto(self.url)
        return page

    def _guest(self, options: dict[str, Any]) -> Guest:
        self.guests.append(guest(self.browser, self.url, **options))
        return self.guests[-1]

    def entries(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What the ledger holds, which must be whole."""
        assert self.service.store.ledger.verify().faults == ()
        found = list(self.service.store.ledger.entries())
        return [each for each in found if kind is None or each["kind"] == kind]

    def leave(self) -> list[str]:
        """Everybody goes; what went wrong for any of them."""
        problems = [problem for guest in self.guests for problem in guest.problems]
        for guest in self.guests:
            guest.context.close()
        return problems


@contextmanager
def opened_room(service: Service, browser: Browser) -> Iterator[Room]:
    """A room over a service, which is closed with it. What goes wrong in a reader's browser fails the test: an error on
    its console, a refusal by the content security policy, a request to another host."""
    with listening(service) as url:
        room = Room(service, url, browser)
        yield room
        problems = room.leave()
    service.close()
    assert problems == []


@cache
def _axe() -> str:
    assert AXE.is_file(), "accessibility is checked with axe-core: make page-tools"
    return AXE.read_text()


def accessibility_faults(page: Page, within: str | None = None) -> list[str]:
    """What axe finds against WCAG 2.2 A and AA, one line a node.

    Args:
        page: as it is now.
        within: a selector; None: the whole page.
    """
    if not page.evaluate("typeof window.axe === 'object'"):
        page.evaluate(_axe())
    options = json.dumps({"runOnly": {"type": "tag", "values": WCAG}, "resultTypes": ["violations"]})
    found: Any = page.evaluate(f"axe.run({json.dumps(within) if within else 'document'}, {options})")
    return [
        f"{rule['id']}: {node['html'][:160]}: {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
