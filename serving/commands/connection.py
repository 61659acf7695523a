"""Which server a command asks, and with which key."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from csr.errors import ConfigError
from serving.client import Client
from serving.config import ADMIN_KEY

_URL = "http://127.0.0.1:8000"


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--url", default=os.environ.get("CSR_URL", _URL), help="of the server (CSR_URL, %(default)s)")
    parser.add_argument(
        "--key-file", type=Path, help=f"holds an API key (else CSR_API_KEY, else {ADMIN_KEY} if it is there)"
    )


def connect(given: argparse.Namespace) -> Client:
    """A client by these options.

    Raises:
        ConfigError: no key is named.
    """
    return Client(given.url, _key(given.key_file))


def _key(file: Path | None) -> str:
    if file is None and (key := os.environ.get("CSR_API_KEY")):
        return key
    source = file or ADMIN_KEY
    try:
        return source.read_text().strip()
    except OSError as error:
        if file is None:
            raise ConfigError("no API key: set CSR_API_KEY, or name a file with --key-file") from None
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
