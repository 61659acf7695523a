"""What docstrings refer to is there: every name in single backticks, and every file that a string or comment names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("csr", "serving", "pipelines")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
REFERENCE = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
FILE = re.compile(rf"\b(?:{'|'.join((*PACKAGES, 'tests', 'infra', 'params'))})/[\w/]+\.(?:py|ya?ml|json|sh|md)\b")
Scope = ast.Module | ast.ClassDef
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def module_file(parts: list[str]) -> Path | None:
    """The file of a module or package, None if there is none."""
    place = ROOT.joinpath(*parts)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def members(scope: Scope) -> dict[str, ast.AST | None]:
    """What a module or class defines or imports, by name; a class by its node, so that one can look into it."""
    found: dict[str, ast.AST | None] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {(name.asname or name.name).split(".")[0]: None for name in node.names}
    for node in scope.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {
                each.id: None for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)
            }
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
    return found


def leads_somewhere(scope: Scope, names: list[str]) -> bool:
    """Whether a.b.c is found from a scope on; what is imported or inherited is taken on trust."""
    if not names:
        return True
    own = members(scope)
    if names[0] not in own:
        return isinstance(scope, ast.ClassDef) and bool(scope.bases)
    target = own[names[0]]
    return leads_somewhere(target, names[1:]) if isinstance(target, ast.ClassDef) else True


def resolves(name: str, file: Path, around: list[ast.AST]) -> bool:
    """Whether a name is a module, something in one, or known where the docstring stands: in the module, in a class or
    function around it, or beside a package's ``__init__.py``."""
    parts = name.split(".")
    if parts[0] in PACKAGES:
        for length in range(len(parts), 0, -1):
            if module := module_file(parts[:length]):
                return leads_somewhere(parsed(module), parts[length:])
        return False
    if file.name == "__init__.py" and module_file([*file.parent.relative_to(ROOT).parts, parts[0]]):
        return True
    if any(each.arg == name for node in around for each in ast.walk(node) if isinstance(each, ast.arg)):
        return True
    scopes = [each for each in (parsed(file), *around) if isinstance(each, Scope)]
    return any(parts[0] in members(scope) and leads_somewhere(scope, parts) for scope in scopes)


def unresolved(file: Path) -> list[str]:
    found: list[str] = []

    def visit(node: ast.AST, around: list[ast.AST]) -> None:
        if isinstance(node, DOCUMENTED):
            around = [*around, node]
            names = REFERENCE.findall(ast.get_docstring(node, clean=False) or "")
            found.extend(name for name in names if not resolves(name, file, around[1:]))
        for child in ast.iter_child_nodes(node):
            visit(child, around)

    visit(parsed(file), [])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_names_in_backticks_are_names_of_something(package: str) -> None:
    found = {str(file.relative_to(ROOT)): unresolved(file) for file in SOURCES if file.is_relative_to(ROOT / package)}
    assert not {file: names for file, names in found.items() if names}


def test_files_that_the_code_names_are_there() -> None:
    named = {(str(file.relative_to(ROOT)), name) for file in SOURCES for name in FILE.findall(file.read_text())}
    assert named
    assert not sorted((file, name) for file, name in named if not (ROOT / name).exists())


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("csr.data.records.Collection.boxes_by_pair", True),
        ("csr.data.records.Collection.name", True),
        ("csr.data.records.Collection.boxes_by_concept", False),
        ("csr.data.records", True),
        ("csr.datasets.records", False),
        ("csr.data.records.check_collections", False),
        ("Collection.truth", True),
        ("Collection.truths", False),
        ("check_collection", True),
        ("reporter", False),
    ],
)
def test_the_check_tells_what_is_there_from_what_is_not(name: str, there: bool) -> None:
    assert resolves(name, ROOT / "csr/data/records.py", []) is there
