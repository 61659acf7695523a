"""Leaves attributes out of the reference that say nothing there: a dataclass's fields where its list of arguments tells
them already, and what ``__init__`` assigns, unless they have a text of their own.

An extension of griffe, to come after its own for dataclasses (mkdocs.yml).
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class QuietFields(griffe.Extension):
    """Takes them out once a package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        _leave_out(pkg)


def _leave_out(scope: griffe.Module | griffe.Class) -> None:
    text = scope.docstring.value if scope.docstring else ""
    told = "dataclass" in scope.labels and re.search(r"^Args:", text, re.MULTILINE)
    for name, member in list(scope.members.items()):
        if member.is_alias:
            continue
        if isinstance(member, griffe.Module | griffe.Class):
            _leave_out(member)
        elif isinstance(member, griffe.Attribute) and not member.has_docstring:
            assigned = "instance-attribute" in member.labels and "class-attribute" not in member.labels
            if told or (assigned and member.value is not None):
                del scope.members[name]
