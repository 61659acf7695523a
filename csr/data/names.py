"""Files by the names that people write: with other capitals, without the extension, with backslashes.

A table that was made on another system names files that are there, but not to the letter. Such a name is understood if
it fits one file only; whether it is also taken is the user's choice. Of any other name the nearest file is said.
"""

from __future__ import annotations

import difflib
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

GUESSES = 20  # names whose nearest file is looked for by spelling, which takes a look at every file


class StoredNames:
    """The files below a folder, listed when the first name is not among them.

    Args:
        folder: that names are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guessed = 0

    def __contains__(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def match(self, name: str) -> str | None:
        """The one file that a name fits but for capitals, backslashes or a missing extension; None if none or several
        do."""
        fitting = self._fitting(name)
        return fitting[0] if len(fitting) == 1 else None

    def hint(self, name: str) -> str:
        """What to say of a name that no file has, as the end of a sentence; empty if nothing is near."""
        match self._fitting(name):
            case [only]:
                return f"; data.lenient: true takes {only!r} for it"
            case [first, second, *_]:
                return f"; it could be {first!r} or {second!r}"
        near = self._nearest(name)
        return f"; the nearest is {near!r}" if near else ""

    def _fitting(self, name: str) -> list[str]:
        key = _key(name)
        return self._by_key.get(key) or self._by_stem.get(key) or []

    def _nearest(self, name: str) -> str | None:
        """A file of this name in another folder, or with another extension, or spelt nearly so."""
        base = posixpath.basename(_key(name))
        for known in (base, posixpath.splitext(base)[0]):
            if found := self._by_base.get(known):
                return found[0]
        if self._guessed == GUESSES:
            return None
        self._guessed += 1
        near = difflib.get_close_matches(_key(name), self._by_key, n=1)
        return self._by_key[near[0]][0] if near else None

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(_files(self._folder)):
            found[_key(name)].append(name)
        return dict(found)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """By name without extension."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key, names in self._by_key.items():
            found[posixpath.splitext(key)[0]] += names
        return dict(found)

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        """By name without folder, with and without extension."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key, names in self._by_key.items():
            base = posixpath.basename(key)
            for known in {base, posixpath.splitext(base)[0]}:
                found[known] += names
        return dict(found)


def _files(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, also in folders that links lead to, each folder once."""
    seen: set[str] = set()
    for place, inner, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            inner.clear()
            continue
        seen.add(real)
        yield from ((Path(place) / file).relative_to(folder).as_posix() for file in files)


def _key(name: str) -> str:
    """What names have in common that people take for the same."""
    return posixpath.normpath(name.replace("\\", "/")).casefold()
