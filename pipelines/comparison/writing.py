"""How the comparison's reports are written; apart from `pipelines.comparison.common`, on which every training rests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from csr.data.html_report import Section, to_html, to_markdown
from csr.errors import CSRError
from pipelines.comparison.common import load_comparison
from pipelines.params import Params


def write_report(
    stage: str, build: Callable[[Params], tuple[str, list[Section]]], suffix: str = "", folder: Path | None = None
) -> None:
    """Writes what ``build`` makes, a title and sections, as ``<folder><suffix>.md`` and ``.html``, and prints the
    Markdown; a mistake that a person can mend ends it with one sentence.

    Args:
        folder: of the report's parts; None: ``comparison.folder``.
    """
    try:
        params = load_comparison()
        title, sections = build(params)
    except CSRError as error:
        sys.exit(f"{stage}: {error}")
    for ending, text in (("md", to_markdown(title, sections)), ("html", to_html(title, sections))):
        Path(f"{folder or params.comparison.folder}{suffix}.{ending}").write_text(text)
    print(to_markdown(title, sections))
