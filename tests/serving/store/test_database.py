"""Opening a store: refused where it is newer; where it is older see `test_migration`."""

from __future__ import annotations

import pytest

from serving.errors import StoreError
from serving.store import Store
from serving.store.schema import VERSION, schema_version
from tests.serving.store.test_ledger import KEY, server, store

__all__ = ["server", "store"]


def url(store: Store) -> str:
    return store.database._engine.url.render_as_string(hide_password=False)


def test_a_newer_store_is_refused(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(schema_version.insert().values(version=VERSION + 1))
    with pytest.raises(StoreError, match=f"has tables of version {VERSION + 1}, this server needs {VERSION}"):
        Store.open(url(store), KEY)
