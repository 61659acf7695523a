"""``csr audit``: whether the ledger is whole, and what is in it. Reads the store itself, not a server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from csr.errors import ConfigError
from serving.deploy.config import StoreConfig, load_config
from serving.store import Store
from serving.store.entries import Receipt


def main(arguments: Sequence[str]) -> int:
    """``csr audit verify`` and ``csr audit export``; status 1 if the ledger is not whole.

    Raises:
        CSRError: the store or the key cannot be read.
    """
    parser = argparse.ArgumentParser(prog="csr audit", description="The ledger of predictions and interactions.")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="find any entry that was changed, removed, added or moved")
    verify.add_argument("--noted", type=_receipt, metavar="NUMBER:HASH", help="a head noted elsewhere, to compare with")
    export = commands.add_parser("export", help="print all entries as JSON, one a line")
    export.add_argument("--after", type=int, default=0, metavar="NUMBER", help="only later ones")
    for command in (verify, export):
        command.add_argument("--config", type=Path, help="the server's configuration; without it, defaults")
    given = parser.parse_args(arguments)
    store = _open(StoreConfig() if given.config is None else load_config(given.config).store)
    try:
        if given.command == "export":
            for entry in store.ledger.entries(after=given.after):
                print(json.dumps(entry, ensure_ascii=False))
            return 0
        found = store.ledger.verify(given.noted)
    finally:
        store.database.close()
    for fault in found.faults:
        print(fault, file=sys.stderr)
    state = f"{len(found.faults)} faults" if found.faults else "whole"
    print(f"{found.head.number} entries, {state}; head {found.head.number}:{found.head.hash}")
    return 1 if found.faults else 0


def _open(config: StoreConfig) -> Store:
    if not config.ledger_key_file.is_file():
        raise ConfigError(f"{config.ledger_key_file}: missing; the ledger cannot be verified without its key")
    if config.address.startswith("sqlite") and not Path(config.address.partition(":///")[2]).is_file():
        raise ConfigError(f"{config.address}: there is no such store in {Path.cwd()}")
    return Store.open(config.address, config.ledger_key_file.read_bytes().strip())


def _receipt(text: str) -> Receipt:
    number, colon, digest = text.partition(":")
    if not (number.isdecimal() and colon and digest):
        raise argparse.ArgumentTypeError(f"{text!r} is not NUMBER:HASH")
    return Receipt(int(number), digest)
