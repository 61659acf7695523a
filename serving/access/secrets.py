"""What seals the ledger and salts pseudonyms: from the environment, or from files, which are made where one may."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from csr.errors import ConfigError

SECRET_BYTES = 32
SECRETS = ("CSR_LEDGER_KEY", "CSR_DICOM_SALT", "CSR_ACTORS_SALT")  # environment variables, each with a secret itself


def read_secret(file: Path, variable: str, make: bool = True) -> bytes:
    """A secret's bytes.

    Several processes may ask at once: all get the same.

    Args:
        file: that holds it; made, readable by its owner only, if it is missing.
        variable: of the environment, one of `SECRETS`; if it is set, no file is looked at.
        make: False: it must be there.

    Raises:
        ConfigError: it cannot be read or made, or is too short.
    """
    if variable in os.environ:
        return _long_enough(os.environ[variable].strip().encode(), variable)
    if not file.exists():
        if not make:
            raise ConfigError(
                f"{file}: missing, and {variable} is not set; this secret is not made here but given: another one "
                "would not fit what is stored"
            )
        _make(file)
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    return _long_enough(secret, str(file))


def _long_enough(secret: bytes, where: str) -> bytes:
    if len(secret) < SECRET_BYTES:
        raise ConfigError(f"{where}: holds {len(secret)} bytes, a secret needs {SECRET_BYTES}")
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
