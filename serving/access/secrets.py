"""Secrets in files: what seals the ledger and salts pseudonyms."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from csr.errors import ConfigError

SECRET_BYTES = 32


def read_secret(file: Path) -> bytes:
    """A secret's bytes; made, readable by its owner only, if the file is missing.

    Several processes may ask at once: all get the same.

    Raises:
        ConfigError: the file cannot be read or made, or holds too little.
    """
    if not file.exists():
        _make(file)
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    if len(secret) < SECRET_BYTES:
        raise ConfigError(f"{file}: holds {len(secret)} bytes, a secret needs {SECRET_BYTES}")
    return secret


def _make(file: Path) -> None:
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft.touch(mode=0o600)
        try:
            draft.write_text(secrets.token_hex(SECRET_BYTES) + "\n")
            os.link(draft, file)  # whole, or not at all
        finally:
            draft.unlink()
    except FileExistsError:  # another process was faster
        pass
    except OSError as error:
        raise ConfigError(f"{file}: cannot be made ({error.strerror})") from None
