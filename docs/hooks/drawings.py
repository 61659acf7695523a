"""Puts drawings and lists that come from the code into pages, where a page has a comment such as
``<!-- drawing: rooms csr -->``.

mkdocs calls `on_page_markdown` (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import re

import layered
import rooms
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_MARK = re.compile(r"^<!-- drawing: (\w+) (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces the comments."""
    return _MARK.sub(lambda mark: _DRAWERS[mark[1]](mark[2]), markdown)


def _rooms(package: str) -> str:
    return _block(layered.svg(rooms.rooms(package), f"The rooms of {package}, and who imports whom"))


def _stages(file: str) -> str:
    return _block(layered.svg(rooms.stages(file), f"The stages of {file}"))


def _file(name: str) -> str:
    return _block((rooms.ROOT / name).read_text().replace("\n", ""))


def _block(drawing: str) -> str:
    """HTML that Markdown leaves alone."""
    return f"<div>{drawing}</div>"


def _modules(package: str) -> str:
    """A table of a package's modules."""
    rows = [f"| `{module}` | {sentence} |" for module, sentence in rooms.first_sentences(package)]
    return "\n".join(["| module | |", "|---|---|", *rows])


_DRAWERS = {"file": _file, "rooms": _rooms, "stages": _stages, "modules": _modules}
