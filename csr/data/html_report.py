"""Tables and figures of a report, rendered as Markdown and as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header; ``note`` is a paragraph above it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, tables, and figures as SVG documents or ``img`` elements."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[str, ...] = field(default=())


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 100rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: .6rem 0 1.6rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d9dee3; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #8b949e }
tr:hover td { background: #f3f6f9 }
.scroll { overflow-x: auto }
svg { max-width: 100%; height: auto }
"""


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """GitHub-flavoured Markdown. Figures are left to the HTML page."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.paragraphs:
            lines += [paragraph, ""]
        for table in section.tables:
            lines += [f"### {table.title}", ""] if table.title else []
            lines += [table.note, ""] if table.note else []
            lines.append(_markdown_row(table.columns))
            lines.append("|---" * len(table.columns) + "|")
            lines += [_markdown_row(row) for row in table.rows]
            lines.append("")
    return "\n".join(lines)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One page without scripts or links to elsewhere."""
    body = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{escape(section.title)}</h2>")
        body += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
        for table in section.tables:
            body += [f"<h3>{escape(table.title)}</h3>"] if table.title else []
            body += [f"<p>{escape(table.note)}</p>"] if table.note else []
            head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
            rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows]
            body.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>')
            body += [f"<tr>{row}</tr>" for row in rows] + ["</tbody></table></div>"]
        body += list(section.figures)
    page = "\n".join(body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{page}\n</body></html>\n"
    )


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
