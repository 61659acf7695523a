"""``csr audit``: whether ledger and studies are whole, what is in the ledger, and the store into another database.
Reads the store, asks no server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from csr.errors import ConfigError
from serving.deploy.config import StoreConfig, load_config
from serving.store import Store
from serving.store.copying import copy_store
from serving.store.entries import Receipt
from serving.store.verification import verify_studies

SAMPLE = 100


def main(arguments: Sequence[str]) -> int:
    """``csr audit verify``, ``export`` and ``copy``; status 1 if the ledger or a study is not whole.

    Raises:
        CSRError: the store or the key cannot be read.
    """
    parser = argparse.ArgumentParser(prog="csr audit", description="The ledger of predictions and interactions.")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="find any entry or study that was changed, removed, added or moved")
    verify.add_argument("--noted", type=receipt, metavar="NUMBER:HASH", help="a head noted elsewhere, to compare with")
    verify.add_argument(
        "--studies",
        type=_count,
        default=SAMPLE,
        metavar="COUNT",
        help="whose pixels are compared with their digest: all, or so many, chosen by chance (%(default)s)",
    )
    export = commands.add_parser("export", help="print all entries as JSON, one a line")
    export.add_argument("--after", type=int, default=0, metavar="NUMBER", help="only later ones")
    copy = commands.add_parser("copy", help="verify the store, copy it into an empty database, and verify that")
    copy.add_argument("url", help="of the database, as store.url; a password belongs into PGPASSWORD or ~/.pgpass")
    for command in (verify, export, copy):
        command.add_argument("--config", type=Path, help="the server's configuration; without it, defaults")
    given = parser.parse_args(arguments)
    config = StoreConfig() if given.config is None else load_config(given.config).store
    store = open_store(config)
    try:
        if given.command == "export":
            for entry in store.ledger.entries(after=given.after):
                print(json.dumps(entry, ensure_ascii=False))
            return 0
        if given.command == "copy":
            return _copy(store, config, given.url)
        found = store.ledger.verify(given.noted)
        studies = verify_studies(store.database, given.studies)
    finally:
        store.database.close()
    for fault in (*studies.faults, *found.faults):
        print(fault, file=sys.stderr)
    print(f"{studies.recomputed} of {studies.stored} studies recomputed, {_state(studies.faults)}")
    print(f"{found.head.number} entries, {_state(found.faults)}; head {found.head.number}:{found.head.hash}")
    return 1 if found.faults or studies.faults else 0


def _copy(store: Store, config: StoreConfig, url: str) -> int:
    before = store.ledger.verify()
    if before.faults:
        print(*before.faults, "nothing was copied: the ledger is not whole", sep="\n", file=sys.stderr)
        return 1
    target = Store.open(url, config.ledger_key(make=False))
    try:
        counts = copy_store(store, target)
        after = target.ledger.verify(before.head)
        studies = verify_studies(target.database, None)
    finally:
        target.database.close()
    faults = [*after.faults, *studies.faults]
    if after.head != before.head:
        faults.append(
            f"the copy ends at entry {after.head.number}, not at {before.head.number}: somebody wrote meanwhile"
        )
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    print(", ".join(f"{count} of {table}" for table, count in counts.items()))
    print(f"{target.database.name}: {_state(faults)}; head {after.head.number}:{after.head.hash}")
    return 1 if faults else 0


def _state(faults: Sequence[str]) -> str:
    return f"{len(faults)} faults" if faults else "whole"


def _count(text: str) -> int | None:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return None if text == "all" else int(text)


def open_store(config: StoreConfig) -> Store:
    """A store that is there, with its key.

    Raises:
        CSRError: it, or the key, is not there or cannot be read.
    """
    key = config.ledger_key(make=False)
    if config.address.startswith("sqlite") and not Path(config.address.partition(":///")[2]).is_file():
        raise ConfigError(f"{config.address}: there is no such store in {Path.cwd()}")
    return Store.open(config.address, key, migrate=False)


def receipt(text: str) -> Receipt:
    """NUMBER:HASH, as ``csr audit verify`` prints a head."""
    number, colon, digest = text.partition(":")
    if not (number.isdecimal() and colon and digest):
        raise argparse.ArgumentTypeError(f"{text!r} is not NUMBER:HASH")
    return Receipt(int(number), digest)
