"""SHA-256 of files and folders: how data, bundles and inputs of a training are told apart."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path

_RECENT_NS = 2_000_000_000  # the coarsest clock of a file system (FAT's): what changes within it may look unchanged


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path, of_file: Callable[[Path], str] = file_digest) -> str:
    """SHA-256 over the names and contents of all files below a folder, in hexadecimal digits.

    Args:
        folder: it.
        of_file: gives a file's digest; `KnownDigests.of` reads those only that it does not know.
    """
    total = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        total.update(file.relative_to(folder).as_posix().encode())
        total.update(bytes.fromhex(of_file(file)))
    return total.hexdigest()


class KnownDigests:
    """Digests of files that were read before, good for as long as nobody touches them.

    A file is taken for untouched while its device, inode, size, and times of the last change of content and of anything
    (``ctime``, which programs cannot set back) are the same: what git's index and DVC go by. A file that was touched
    within two seconds before it was read is not remembered, since a change after that could leave its times as they
    are. Not noticed is damage below the file system, as by a failing disk.

    Args:
        file: where they are kept between processes. It may be deleted at any time; one that cannot be read counts as
            empty. Of two processes that save at once the later one's stay, and the other's files are read again.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._new = file, False
        try:
            self._known: dict[str, list[int | str]] = dict(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def of(self, file: Path) -> str:
        """SHA-256 of a file, as `file_digest`."""
        name, read_at = str(file.resolve()), time.time_ns()
        before = _state(file)
        known = self._known.get(name)
        if known is not None and known[:-1] == before:
            return str(known[-1])
        digest = file_digest(file)
        if _state(file) == before and max(before[-2:]) + _RECENT_NS < read_at:
            self._known[name], self._new = [*before, digest], True
        return digest

    def save(self) -> None:
        """Keeps what was learned, without the files that are gone."""
        if not self._new:
            return
        self._known = {name: known for name, known in self._known.items() if Path(name).exists()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_name(f"{self._file.name}.{uuid.uuid4().hex}")
        draft.write_text(json.dumps(self._known))
        draft.replace(self._file)


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
