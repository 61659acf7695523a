"""``csr keys``: API keys, made and ended in the store itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from serving.access.actors import Role
from serving.access.keys import KeyStore
from serving.config import StoreConfig, load_config
from serving.store.database import Database


def main(arguments: Sequence[str]) -> None:
    """``csr keys create NAME``, ``list`` and ``revoke NAME``.

    Raises:
        CSRError: the name cannot be used, or the store cannot be reached.
    """
    parser = argparse.ArgumentParser(prog="csr keys", description="API keys of the server.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("--role", choices=[role.name for role in Role], default=Role.reader.name)
    revoke = commands.add_parser("revoke", help="end a key; servers follow within seconds")
    for command in (create, revoke):
        command.add_argument("name", help="the pseudonym of whoever holds it, as the ledger shows it")
    for command in (create, revoke, commands.add_parser("list", help="all keys there ever were")):
        command.add_argument("--config", type=Path, help="the server's configuration; without it, defaults")
    given = parser.parse_args(arguments)
    store = StoreConfig() if given.config is None else load_config(given.config).store
    database = Database(store.address)
    try:
        keys = KeyStore(database)
        if given.command == "create":
            print(keys.create(given.name, Role[given.role]))
        elif given.command == "revoke":
            keys.revoke(given.name)
        else:
            for key in keys.list():
                state = f"revoked {key.revoked_at}" if key.revoked_at else "in use"
                print(f"{key.name:<24} {key.role.name:<9} created {key.created_at}  {state}")
    finally:
        database.close()
