"""Digests of what stages read and write. A prepared set is read once where it was written; the stages after it look
whether its files were touched since (`csr.data.digests.KnownDigests`), which costs the same however large they are."""

from __future__ import annotations

from pathlib import Path

from csr.data.digests import KnownDigests, folder_digest
from pipelines.tracking import STATE

_FILE = STATE / "digests.json"


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or over the names and contents of a folder's files, as `csr.data.digests` has it."""
    known = KnownDigests(_FILE)
    found = folder_digest(path, known.of) if path.is_dir() else known.of(path)
    known.save()
    return found


def digests_below(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path in it."""
    known = KnownDigests(_FILE)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = {file.relative_to(folder).as_posix(): known.of(file) for file in files}
    known.save()
    return found
