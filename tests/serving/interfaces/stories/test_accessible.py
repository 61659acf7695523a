"""axe-core finds nothing against WCAG 2.2 AA, in any view and any of its dialogs."""

from __future__ import annotations

from tests.serving.interfaces.browser import Room, accessibility_faults


def test_signing_in(room: Room) -> None:
    page = room.enter()
    page.context.clear_cookies()
    page.goto(room.url)
    page.get_by_label("Your key").fill("csr_" + "x" * 43)
    page.get_by_role("button", name="Sign in").click()
    assert accessibility_faults(page) == []
