"""Opening a store: made where there is none, extended where it is older, refused where it is newer."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from serving.errors import StoreError
from serving.store import Store
from serving.store.database import Database
from serving.store.schema import VERSION, metadata, schema_version, session, write_probe
from tests.serving.store.test_ledger import KEY, fill, server, store

__all__ = ["server", "store"]


def tables(database: Database) -> set[str]:
    with database.read() as connection:
        return set(sa.inspect(connection).get_table_names())


def url(store: Store) -> str:
    return store.database._engine.url.render_as_string(hide_password=False)


def test_a_store_of_the_first_version_gets_what_it_lacks(store: Store) -> None:
    fill(store, 3)
    with store.database.write() as connection:
        metadata.drop_all(connection, [session, write_probe])
        connection.execute(schema_version.update().values(version=1))
    for _ in range(2):
        opened = Store.open(url(store), KEY)
        assert tables(opened.database) == set(metadata.tables)
        assert opened.ledger.verify().head.number == 3 and opened.ledger.verify().faults == ()
        opened.database.close()
    with store.database.read() as connection:
        versions = connection.execute(sa.select(schema_version.c.version).order_by(schema_version.c.version)).scalars()
        assert list(versions) == [1, VERSION]


def test_a_newer_store_is_refused(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(schema_version.insert().values(version=VERSION + 1))
    with pytest.raises(StoreError, match=f"has tables of version {VERSION + 1}, this server needs {VERSION}"):
        Store.open(url(store), KEY)
