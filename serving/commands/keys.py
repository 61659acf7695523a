"""``csr keys``: API keys and the sessions of browsers, made and ended in the store itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from serving.access.keys import KeyStore
from serving.access.roles import Role
from serving.access.sessions import SessionStore
from serving.deploy.config import AccessConfig, StoreConfig, load_config
from serving.errors import UnknownKeyError
from serving.store import Store


def main(arguments: Sequence[str]) -> None:
    """``csr keys create NAME``, ``list``, ``revoke NAME``, ``sessions`` and ``end-session ID``.

    Raises:
        CSRError: the name cannot be used, there is no such key or session, or the store cannot be reached.
    """
    parser = argparse.ArgumentParser(prog="csr keys", description="API keys of the server, and sessions of browsers.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("--role", choices=list(Role), default=Role.READER)
    revoke = commands.add_parser("revoke", help="end a key; servers follow within seconds")
    for command in (create, revoke):
        command.add_argument("name", help="the pseudonym of whoever holds it, as the ledger shows it")
    listing = commands.add_parser("list", help="all keys there ever were")
    signed_in = commands.add_parser("sessions", help="browsers that are signed in")
    end = commands.add_parser("end-session", help="sign a browser out; servers follow within seconds")
    end.add_argument("id", help="of a session, as `csr keys sessions` lists it")
    for command in (create, revoke, listing, signed_in, end):
        command.add_argument("--config", type=Path, help="the server's configuration; without it, defaults")
    given = parser.parse_args(arguments)
    store, access = StoreConfig(), AccessConfig()
    if given.config is not None:
        config = load_config(given.config)
        store, access = config.store, config.access
    opened = Store.open(store.address, store.ledger_key())
    try:
        keys, sessions = KeyStore(opened), SessionStore(opened.database, access.sessions)
        if given.command == "create":
            print(keys.create(given.name, Role(given.role))[1])
        elif given.command == "revoke":
            keys.revoke(_id_of(given.name, keys))
        elif given.command == "sessions":
            for each in sessions.list():
                when = f"opened {each.opened_at}  used {each.used_at}  expires {each.expires_at}"
                print(f"{each.id}  {each.actor.name:<24} {each.actor.role:<9} {when}")
        elif given.command == "end-session":
            sessions.end_by_id(given.id)
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
