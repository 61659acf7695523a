"""A store moves into another database as it is: the same chain, verified there, and nothing half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.access.roles import Role
from serving.commands.audit import main
from serving.deploy.service import Service
from serving.store import Store
from tests.serving.conftest import client_of, make_service
from tests.serving.postgres import postgres


def test_a_store_moves_to_postgresql_and_is_served_from_there(
    service: Service, bundle: Any, sample: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = service.keys.create("ann", Role.READER)[1]
    client = client_of(service)
    digest = client.post("/v1/studies", files={"file": sample}).json()["digest"]
    client.post(f"/v1/studies/{digest}/readings", json={"decision": "keep"})
    config = tmp_path / "serving.yaml"
    here = f"{{url: 'sqlite:///{tmp_path}/state/store.db', ledger_key_file: '{tmp_path}/state/ledger.key'}}"
    config.write_text(f"model: {{bundle: '{bundle.path}'}}\nstore: {here}\n")
    head = service.store.ledger.head()
    with postgres() as server:
        arguments = ["copy", server.url, "--config", str(config)]
        assert main(arguments) == 0
        assert f"whole; head {head.number}:{head.hash}" in capsys.readouterr().out
        with pytest.raises(Exception, match="is not empty"):
            main(arguments)
        secret = (tmp_path / "state/ledger.key").read_bytes().strip()
        moved = Store.open(server.url, secret, migrate=False)
        assert moved.ledger.verify(head).faults == () and moved.ledger.head() == head
        moved.database.close()
        (tmp_path / "other").mkdir()
        (tmp_path / "other/ledger.key").write_bytes(secret)
        there = {"url": server.url, "ledger_key_file": str(tmp_path / "other/ledger.key")}
        served = make_service(bundle.path, tmp_path / "other", store=there)
        answer = client_of(served, Role.READER).get(f"/v1/studies/{digest}/readings").json()
        assert answer["hidden"] == 1 and answer["agreement"]["readers"] == 1
        assert served.keys.find(key) is not None
        served.close()


def test_what_is_not_whole_is_not_copied(
    service: Service, bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.keys.create("ann", Role.READER)
    with service.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE api_key SET role = 'admin'")
    config = tmp_path / "serving.yaml"
    here = f"{{url: 'sqlite:///{tmp_path}/state/store.db', ledger_key_file: '{tmp_path}/state/ledger.key'}}"
    config.write_text(f"model: {{bundle: '{bundle.path}'}}\nstore: {here}\n")
    assert main(["copy", f"sqlite:///{tmp_path}/copy.db", "--config", str(config)]) == 1
    assert "nothing was copied" in capsys.readouterr().err and not (tmp_path / "copy.db").exists()
