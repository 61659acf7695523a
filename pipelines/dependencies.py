"""Keeps the code dependencies in the files ``dvc.yaml`` the same as what the stages import.

    python -m pipelines.dependencies --write
    python -m pipelines.dependencies --check

A stage's command names the modules that it runs: the program, and where a program imports what its arguments name, that
module too. From these `pipelines.imports` walks. Dependencies below ``csr/`` and ``pipelines/`` are replaced by what it
finds; everything else in the files stays as it is, comments and order too.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from csr.errors import ConfigError, CSRError
from pipelines.imports import PACKAGES, ROOT, needed_files

FILES = (
    Path("dvc.yaml"),
    Path("pipelines/comparison/dvc.yaml"),
    Path("pipelines/forms/dvc.yaml"),
    Path("pipelines/feedback/dvc.yaml"),
)
_MODULE = re.compile(rf"(?<![\w./$])(?:{'|'.join(PACKAGES)})(?:\.\w+)+")


@dataclass(frozen=True)
class StageCode:
    """The code dependencies of one stage.

    Args:
        name: of the stage.
        listed: files as ``dvc.yaml`` lists them, with the number of the line of each, from 0.
        needed: files as they must be listed.
        place: the number of the line below which they are.
        indent: what stands before the dash.
    """

    name: str
    listed: dict[str, int]
    needed: set[str]
    place: int
    indent: str

    @property
    def differences(self) -> list[str]:
        """A sentence for each file that is missing or needless."""
        missing = [f"stage {self.name} needs {file}" for file in sorted(self.needed - set(self.listed))]
        return missing + [f"stage {self.name} does not need {file}" for file in sorted(set(self.listed) - self.needed)]


def read_stages(file: Path, root: Path = ROOT) -> Iterator[StageCode]:
    """Every stage of a ``dvc.yaml`` with the files that it lists and those that it needs.

    Args:
        file: relative to ``root``.

    Raises:
        ConfigError: a stage has no dependencies, or its command names a module that does not exist.
    """
    text = (root / file).read_text()
    stages = _child(yaml.compose(text), "stages")
    for name, node in stages.value:
        body = _child(node, "do") or node
        command, deps, folder = _child(body, "cmd"), _child(body, "deps"), _child(body, "wdir")
        if deps is None or not deps.value:
            raise ConfigError(f"{file}: stage {name.value}: has no deps; list at least its data")
        base = root / file.parent / (folder.value if folder else "")
        entries = _MODULE.findall(text[command.start_mark.index : command.end_mark.index])
        listed, kept = {}, []
        for item in deps.value:
            path = os.path.relpath(os.path.normpath(base / item.value), root)
            if path.partition("/")[0] in PACKAGES:
                listed[item.value] = item.start_mark.line
            else:
                kept.append(item.start_mark.line)
        yield StageCode(
            name.value,
            listed,
            {os.path.relpath(root / each, base) for each in needed_files(entries, root)},
            max(kept, default=deps.start_mark.line - 1),
            " " * (deps.value[0].start_mark.column - 2),
        )


def write(file: Path, root: Path = ROOT) -> bool:
    """Writes the code dependencies anew; whether anything has changed."""
    before = (root / file).read_text()
    lines: list[str | None] = list(before.splitlines(keepends=True))
    new: dict[int, list[str]] = {}
    for stage in read_stages(file, root):
        for line in stage.listed.values():
            lines[line] = None
        new[stage.place] = [f"{stage.indent}- {each}\n" for each in sorted(stage.needed)]
    after = "".join((line or "") + "".join(new.get(number, [])) for number, line in enumerate(lines))
    (root / file).write_text(after)
    return after != before


def differences(root: Path = ROOT) -> list[str]:
    """A sentence for each dependency that is missing or needless, in every pipeline."""
    return [f"{file}: {each}" for file in FILES for stage in read_stages(file, root) for each in stage.differences]


def _child(node: Any, key: str) -> Any:
    return next((value for name, value in node.value if name.value == key), None)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.dependencies")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write them anew")
    action.add_argument("--check", action="store_true", help="only say what differs; status 1 if anything does")
    given = parser.parse_args()
    try:
        if given.write:
            changed = [f"dependencies: {file} was written anew" for file in FILES if write(file)]
            print(*changed or ["dependencies: nothing has changed"], sep="\n")
        elif found := differences():
            sys.exit("\n".join([*found, "dependencies: run make dvc, which writes them anew"]))
    except CSRError as error:
        sys.exit(f"dependencies: {error}")


if __name__ == "__main__":
    main()
