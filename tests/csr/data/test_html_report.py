"""Tables as Markdown, and a page that needs nothing else."""

from __future__ import annotations

from html.parser import HTMLParser

from csr.data.html_report import Section, Table, to_html, to_markdown

AWKWARD = [
    Section(
        "Parts & <kinds>",
        ("1 < 2 & 3",),
        (Table("a|b", ("name | unit", "<b>"), [("x|y", "1 & <2>"), ("", "–")], note="p < 0.05"),),
        ("<svg><text>drawn</text></svg>",),
    ),
    Section("Empty", ("nothing",), (Table("", ("only",), []),)),
]


def test_markdown_tables_are_whole_whatever_the_cells_hold():
    lines = to_markdown("A title", AWKWARD).splitlines()
    assert lines[:4] == ["# A title", "", "## Parts & <kinds>", ""]
    start = lines.index(r"| name \| unit | <b> |")
    assert lines[start + 1 : start + 4] == ["|---|---|", r"| x\|y | 1 & <2> |", "|  | – |"]
    assert lines[start - 1] == "" and lines[start + 4] == ""
    assert "p < 0.05" in lines and "### a|b" in lines
    assert "drawn" not in "\n".join(lines)
    assert to_markdown("A title", AWKWARD).endswith("|---|\n")


class Page(HTMLParser):
    """Collects texts by tag and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open:
            self.texts.append((self.open[-1], data))


def test_html_is_well_formed_escaped_and_needs_nothing_else():
    page = Page()
    page.feed(to_html("T < U", AWKWARD))
    page.close()
    assert not page.open and not page.addresses
    texts = [text for text in page.texts if text[0] != "style"]
    assert texts == [
        ("title", "T < U"),
        ("h1", "T < U"),
        ("h2", "Parts & <kinds>"),
        ("p", "1 < 2 & 3"),
        ("h3", "a|b"),
        ("p", "p < 0.05"),
        ("th", "name | unit"),
        ("th", "<b>"),
        ("td", "x|y"),
        ("td", "1 & <2>"),
        ("td", "–"),
        ("text", "drawn"),
        ("h2", "Empty"),
        ("p", "nothing"),
        ("th", "only"),
    ]
