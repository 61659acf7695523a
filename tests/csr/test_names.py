"""The names of ``import csr``: they are there, they are imported when used, and they do what the ten lines say."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import csr

TREE = ast.parse(Path(csr.__file__).read_text())


def test_importing_csr_imports_none_of_its_rooms() -> None:
    program = "import sys, csr; print([name for name in sys.modules if name.startswith(('csr.', 'torch', 'numpy'))])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", csr.__all__)
def test_a_name_is_what_its_room_calls_so(name: str) -> None:
    assert getattr(csr, name) is getattr(import_module(csr._HOMES[name]), name)
    assert name in dir(csr)


def test_type_checkers_see_the_same_names_from_the_same_rooms() -> None:
    (checked,) = (node for node in TREE.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen == csr._HOMES
    assert sorted(csr.__all__) == sorted(csr._HOMES)


def test_another_name_is_an_error_as_in_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'csr' has no attribute 'trian'"):
        csr.trian  # noqa: B018
    assert not hasattr(csr, "torch")
