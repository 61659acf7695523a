"""What the commands share that ask a server: which one and with which key, and requests in the words of a person."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, TypeVar

import httpx2 as httpx
from pydantic import BaseModel, ValidationError

from csr.errors import ConfigError
from serving.client import Client
from serving.deploy.config import ADMIN_KEY

_URL = "http://127.0.0.1:8000"
T = TypeVar("T", bound=BaseModel)


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--url", default=os.environ.get("CSR_URL", _URL), help="of the server (CSR_URL, %(default)s)")
    parser.add_argument(
        "--key-file", type=Path, help=f"holds an API key (else CSR_API_KEY, else {ADMIN_KEY} if it is there)"
    )


def connect(given: argparse.Namespace) -> Client:
    """A client by these options.

    Raises:
        ConfigError: no key is named, or what is named is none; the address is none.
    """
    try:
        return Client(given.url, _key(given.key_file))
    except httpx.InvalidURL as error:
        raise ConfigError(f"--url: {given.url!r} is no address ({error})") from None


def asked(request: type[T], **values: Any) -> T:
    """A request of what was given on the command line.

    Raises:
        ConfigError: it is no such request; the server would refuse it.
    """
    try:
        return request.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def _key(file: Path | None) -> str:
    where, key = _given(file)
    if not (key and key.isascii() and key.isprintable()):
        raise ConfigError(f"{where}: holds no API key, which is one line of letters, digits, - and _")
    return key


def _given(file: Path | None) -> tuple[str, str]:
    """Where a key is, and what is there."""
    if file is None and (key := os.environ.get("CSR_API_KEY")):
        return "CSR_API_KEY", key.strip()
    source = file or ADMIN_KEY
    try:
        return str(source), source.read_text(errors="replace").strip()
    except OSError as error:
        if file is None:
            raise ConfigError("no API key: set CSR_API_KEY, or name a file with --key-file") from None
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
