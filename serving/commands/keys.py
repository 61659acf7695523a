"""``csr keys``: API keys, made and ended in the store itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from serving.access.keys import KeyStore
from serving.access.roles import Role
from serving.access.secrets import read_secret
from serving.deploy.config import StoreConfig, load_config
from serving.errors import UnknownKeyError
from serving.store import Store


def main(arguments: Sequence[str]) -> None:
    """``csr keys create NAME``, ``list`` and ``revoke NAME``.

    Raises:
        CSRError: the name cannot be used, or the store cannot be reached.
    """
    parser = argparse.ArgumentParser(prog="csr keys", description="API keys of the server.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("--role", choices=list(Role), default=Role.READER)
    revoke = commands.add_parser("revoke", help="end a key; servers follow within seconds")
    for command in (create, revoke):
        command.add_argument("name", help="the pseudonym of whoever holds it, as the ledger shows it")
    for command in (create, revoke, commands.add_parser("list", help="all keys there ever were")):
        command.add_argument("--config", type=Path, help="the server's configuration; without it, defaults")
    given = parser.parse_args(arguments)
    store = StoreConfig() if given.config is None else load_config(given.config).store
    opened = Store.open(store.address, read_secret(store.ledger_key_file))
    try:
        keys = KeyStore(opened.database)
        if given.command == "create":
            print(keys.create(given.name, Role(given.role))[1])
        elif given.command == "revoke":
            keys.revoke(_id_of(given.name, keys))
        else:
            for key in keys.list():
                state = f"revoked {key.revoked_at}" if key.revoked_at else "in use"
                print(f"{key.name:<24} {key.role:<9} created {key.created_at}  {state}")
    finally:
        opened.database.close()


def _id_of(name: str, keys: KeyStore) -> str:
    for key in keys.list():
        if key.name == name and key.revoked_at is None:
            return key.id
    raise UnknownKeyError(f"{name!r}: no key of this name is in use")
