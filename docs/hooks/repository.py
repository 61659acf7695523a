"""Lets pages link to any file of the repository as they do on disk, and makes pages of README, CHANGELOG and
CONTRIBUTING.

A link that leads out of ``docs/`` is rewritten: to the page that the file became, or to a copy of it in the site, so
that the built site is whole by itself. mkdocs calls these functions (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing/index.md"}
COPIES = "repository/"
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and the copies that pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for file in list(files.documentation_pages()):
        for link in _LINK.findall(file.content_string):
            place = _in_repository(file.src_uri, link)
            copy = _in_site(place)
            if copy.startswith(COPIES) and copy not in files.src_uris:
                if not (ROOT / place).is_file():
                    raise PluginError(f"{file.src_uri}: links to {link}, and {place} is no file of the repository")
                files.append(File.generated(config, copy, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links."""
    here = page.file.src_uri
    if here.startswith(COPIES):
        return markdown

    def rewritten(link: re.Match[str]) -> str:
        place = _in_repository(here, link[1])
        if place.startswith(DOCS) and here not in PAGES.values():
            return link[1]
        return posixpath.relpath(_in_site(place), posixpath.dirname(here) or ".")

    return _LINK.sub(rewritten, markdown)


def _in_repository(page: str, link: str) -> str:
    """The file that a page's link means, from the repository's root."""
    source = next((name for name, made in PAGES.items() if made == page), DOCS + page)
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _in_site(place: str) -> str:
    """Where a file of the repository is in the site's sources."""
    return PAGES.get(place) or (place.removeprefix(DOCS) if place.startswith(DOCS) else COPIES + place)
