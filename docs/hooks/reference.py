"""Writes the reference: one page a package, from its modules' docstrings, and links the names that texts mention.

mkdocs calls these functions (``hooks`` in mkdocs.yml). The pages exist in the built site only; nothing is imported, so
the site can be built without torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ROOTS = ("csr", "pipelines", "serving")
_BEHIND = "---\nsearch:\n  boost: 0.5\n---"  # found after the pages that people wrote
_NAME = re.compile(rf"<code>((?:{'|'.join(ROOTS)})(?:\.\w+)+)</code>")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reference's pages to the navigation."""
    sections = []
    for root in ROOTS:
        pages = {name: _page(name) for name in packages(root)}
        titles = {name: name.partition(".")[2] or "top level" for name in pages}
        sections.append({root: [{titles[name]: page} for name, page in pages.items()]})
    config.nav = [*(config.nav or []), {"Reference": sections}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Writes the reference's pages."""
    for root in ROOTS:
        for name, modules in packages(root).items():
            lines = [_BEHIND, f"# {name}", *(f"::: {module}" for module in modules)]
            files.append(File.generated(config, _page(name), content="\n\n".join(lines) + "\n"))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links of the names of code that stand alone in code's type, where the reference knows them."""
    return _NAME.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', html)


def packages(root: str) -> dict[str, list[str]]:
    """Package → its modules that have something to say, both by dotted name and in alphabetical order."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / root).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        package = ".".join(parts[:-1])
        if file.read_text().strip():
            found.setdefault(package, []).append(module)
    return dict(sorted(found.items()))


def _page(package: str) -> str:
    return f"reference/{package}.md"
