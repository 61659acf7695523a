"""The documentation: it builds strictly, needs no network, and what it names is there."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
FRONT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
PAGES = sorted([*(ROOT / name for name in FRONT), *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("csr", "pipelines", "serving")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MADE = ("build/", "data/prepared", "reports/promotion/", "reports/curves", "reports/plots")  # by running it
EXAMPLE = re.compile(r"my_\w+")  # of the recipes


def text_of(page: Path) -> str:
    return page.read_text()


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and content of every fenced block of a language."""
    for page in PAGES:
        for content in re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
            yield page.name, content


def commands() -> Iterator[tuple[str, list[str]]]:
    """Page and words of every command in the shell blocks."""
    for page, content in blocks("sh"):
        for line in re.sub(r"\\\n", " ", content).splitlines():
            for command in re.split(r"[;|]", re.sub(r"(^|\s)#.*", "", line)):
                words = command.split()
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words = words[1:]
                if words:
                    yield page, words


def quoted() -> Iterator[tuple[str, str]]:
    """Page and content of every piece of code in a text."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
        for piece in re.findall(r"`([^`\n]+)`", prose):
            yield page.name, piece


def keys(content: object, prefix: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield f"{prefix}{name}"
            yield from keys(value, f"{prefix}{name}.")


# the site


class Fetched(HTMLParser):
    """What a browser would load to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.addresses.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; about 25 seconds."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_navigation_and_has_something_to_say(site: Path) -> None:
    home = (site / "index.html").read_text()
    for page in PAGES:
        if page.name not in FRONT:
            own = site / page.relative_to(ROOT / "docs").with_suffix(".html")
            assert own.is_file() and f'href="{own.relative_to(site)}"' in home, page
            assert len(text_of(page)) > 500, page
    assert (site / "changelog.html").is_file() and (site / "contributing/index.html").is_file()


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for file in site.rglob("*.html"):
        if file.is_relative_to(site / "repository"):
            continue
        fetched = Fetched()
        fetched.feed(file.read_text())
        assert fetched.addresses
        assert not [each for each in fetched.addresses if re.match(r"(\w+:)?//", each)], file
    for file in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", file.read_text()), file


def test_it_can_be_read_and_searched_from_the_disk(site: Path) -> None:
    chromium = shutil.which("chromium")
    assert chromium, "the search is tested in a real browser: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{site}/index.html")
        page.locator("input.md-search__input").click()
        page.keyboard.type("pseudonym archive")
        page.locator(".md-search-result__item", has_text="structured report").first.wait_for(timeout=30_000)
        browser.close()
    assert asked
    assert not [each for each in asked if not each.startswith(("file:", "data:"))]


def test_the_reference_holds_every_module_that_says_what_it_is(site: Path) -> None:
    names = inventory(site)
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            if ast.get_docstring(ast.parse(file.read_text())):
                module = ".".join(part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__")
                assert module in names


def test_the_drawings_show_every_room_of_the_contracts(site: Path) -> None:
    page = (site / "architecture.html").read_text()
    layers = [each["layers"] for each in PROJECT["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    rooms = [name.strip() for contract in layers for layer in contract for name in re.split("[|:]", layer)]
    assert len(rooms) > 20
    for room in rooms:
        assert f">{room.partition('.')[2]}</text>" in page
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
        assert f">{stage}</text>" in page
    assert "<!-- drawing" not in page


def test_no_box_of_a_drawing_lies_on_another(site: Path) -> None:
    drawings = re.findall(r"<svg class=\"house\".*?</svg>", (site / "architecture.html").read_text(), re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        found = re.findall(r'<rect x="(-?\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', drawing)
        boxes = [tuple(map(int, each)) for each in found]
        assert len(boxes) >= 5
        for a, b in combinations(boxes, 2):
            beside = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0]
            below = a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
            assert beside or below, (a, b)


def test_names_of_code_are_names_of_something(site: Path) -> None:
    names = inventory(site)
    wanted = {(page, piece) for page, piece in quoted() if re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+", piece)}
    assert len(wanted) > 50
    lost = {
        (page, name)
        for page, name in wanted
        if name not in names and not (ROOT / name.replace(".", "/")).is_dir() and not name.endswith(".md")
    }
    assert not lost


def inventory(site: Path) -> set[str]:
    """Every name that the reference knows."""
    _, _, _, _, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


# links, addresses, sizes


@pytest.mark.parametrize("name", FRONT)
def test_links_of_the_front_pages_lead_to_files_and_headings(name: str) -> None:
    links = re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text_of(ROOT / name))
    assert links or name == "CHANGELOG.md"
    for link in links:
        file, _, heading = link.partition("#")
        assert (ROOT / file).is_file(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", text_of(ROOT / file), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, link


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_registry_or_a_folder_of_one_machine(page: Path) -> None:
    registry, folder = r"https?://[^\s)]*(?:pypi|simple/)|--index-url", "|".join(("work", "root", "home", "tmp"))
    assert not re.findall(rf"{registry}|/(?:{folder})/\S*", text_of(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_table_ends_with_an_empty_line(page: Path) -> None:
    """A line of text below it would be its last row."""
    assert not re.findall(r"^\|.*\n(?!\||\n|\Z).*", text_of(page), re.MULTILINE)


def test_nothing_is_left_to_be_filled_in() -> None:
    marks = {(page.name, mark) for page in PAGES for mark in re.findall(r"<!-- (?!drawing: )[^>]*-->", text_of(page))}
    assert not marks


# commands


def test_make_targets_and_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = PROJECT["project"]["entry-points"]["csr.commands"]
    seen = set()
    for page, words in commands():
        if words[0] == "make":
            assert words[1] in targets, (page, words)
        elif words[0] == "csr":
            seen.add(words[1])
            assert_options(page, words[1:], known[words[1]].partition(":")[0])
        elif words[:2] == ["python", "-m"]:
            assert_options(page, words[2:], words[2])
        elif words[0] == "dvc":
            assert words[1] in ("repro", "exp", "metrics", "params", "plots", "add", "push", "pull", "remote"), (
                page,
                words,
            )
    assert seen == set(known)


def assert_options(page: str, words: list[str], module: str) -> None:
    """What follows a command is what its module takes: options and the first word of sub-commands."""
    place = ROOT / module.replace(".", "/")
    files = [file for file in (place.with_suffix(".py"), place / "__main__.py") if file.is_file()]
    assert files, (page, module)
    code = files[0].read_text()
    for shared in re.findall(r"^from (serving\.commands\.\w+) import", code, re.MULTILINE):
        code += (ROOT / shared.replace(".", "/")).with_suffix(".py").read_text()
    for word in words:
        if word.startswith("-") and word != "-S":
            assert f'"{word}"' in code, (page, words, word)


def test_parameters_that_pages_set_exist() -> None:
    parameters = set(keys(yaml.safe_load((ROOT / "params.yaml").read_text())))
    given = [
        (page, word.partition("=")[0])
        for page, words in commands()
        for option, word in pairwise(words)
        if option == "-S"
    ]
    assert len(given) > 10
    assert not [each for each in given if each[1] not in parameters]


def test_keys_that_texts_name_exist() -> None:
    parameters = yaml.safe_load((ROOT / "params.yaml").read_text())
    served = yaml.safe_load((ROOT / "infra/serving.yaml").read_text())
    known = {*keys(parameters), *keys(served)}
    roots = {*parameters, *served} - {"preset"}
    pieces = {piece for _, piece in quoted() if re.fullmatch(rf"({'|'.join(roots)})(\.[a-z_]+)+", piece)}
    named = {piece for piece in pieces if not re.search(r"\.(py|yaml|png|md|json|html|csv)$", piece)}
    assert len(named) > 30
    assert sorted(named - known) == []


def test_files_that_pages_name_exist() -> None:
    folders = "|".join([*PACKAGES, "infra", "tests", "params", "reports", "docs", "data"])
    for page, piece in quoted():
        if re.fullmatch(rf"({folders})/[\w./-]*", piece) and not piece.startswith(MADE) and not EXAMPLE.search(piece):
            assert (ROOT / piece).exists(), (page, piece)


@pytest.mark.parametrize(("page", "code"), list(blocks("python")))
def test_python_examples_are_python(page: str, code: str) -> None:
    ast.parse(code)


# the server


def test_every_route_of_the_reading_api_is_described() -> None:
    routes = set()
    for file in (ROOT / "serving/interfaces/rest").glob("*.py"):
        for method, path in re.findall(r"@router\.(get|post|delete)\(\s*\"([^\"]+)\"", file.read_text()):
            routes.add((method.upper(), "/v1" + re.sub(r"\{(\w+):\w+\}", r"{\1}", path)))
    told = set()
    for name in ("serving.md", "dicom.md", "security.md"):
        for line in re.findall(r"^\| (`(?:GET|POST|DELETE).*?) \|", text_of(ROOT / "docs" / name), re.MULTILINE):
            paths = re.findall(r"(/v1/[^`?]+)", line)
            told |= {(method, path) for method in re.findall(r"GET|POST|DELETE", line) for path in paths}
    assert len(routes) > 15
    assert told == routes


def test_every_metric_is_described_and_alerts_are_those_that_there_are() -> None:
    page = text_of(ROOT / "docs/operating.md")
    measured = set(re.findall(r"\"(csr_[a-z_]+)\"", (ROOT / "serving/telemetry/metrics.py").read_text()))
    assert set(re.findall(r"`(csr_[a-z_]+)`", page)) == measured
    rules = yaml.safe_load((ROOT / "infra/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    assert set(re.findall(r"`(Csr\w+)`", page)) == {rule["alert"] for rule in rules}
