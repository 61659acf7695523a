"""SHA-256 of files and folders: how data, bundles and inputs of a training are told apart."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a folder, in hexadecimal digits."""
    total = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        total.update(file.relative_to(folder).as_posix().encode())
        total.update(bytes.fromhex(file_digest(file)))
    return total.hexdigest()
