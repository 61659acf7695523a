"""What compose starts as containers, started here as plain processes, with the compose file's own settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psycopg
import pytest
import yaml
from cryptography.fernet import Fernet
from mlflow.exceptions import MlflowException
from moto.server import ThreadedMotoServer

from csr.bundle.format import Bundle
from pipelines.champion import champion, promote
from pipelines.registry import fetch_into, register
from pipelines.tracking import connect
from serving.access.roles import Role
from serving.deploy.cluster import free_port
from serving.deploy.service import Service
from tests.infra.test_deployment_files import COMPOSE, INFRA
from tests.processes import running, served
from tests.serving.conftest import bundle, engine, sample, service
from tests.serving.postgres import postgres

__all__ = ["bundle", "engine", "sample", "service"]
KEYS = {"AWS_ACCESS_KEY_ID": "csr", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
WAIT_S = 120.0  # nobody waits so long but on a machine that is busy with something else


@pytest.fixture(scope="module")
def objects() -> Iterator[str]:
    """An S3 store with the buckets that compose makes."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port())
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    buckets = [word.removeprefix("store/") for word in COMPOSE["services"]["buckets"]["command"] if "/" in word]
    assert set(buckets) == {"mlflow", "dvc"}
    for name in buckets:
        urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT"), timeout=20).close()
    yield url
    server.stop()


def test_mlflow_on_postgresql_with_users_and_an_object_store_behind_it(
    bundle: Bundle, objects: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about, port = COMPOSE["services"]["mlflow"], free_port()
    url = f"http://127.0.0.1:{port}"
    with postgres() as database:
        for statement in re.findall(r"^CREATE DATABASE \w+", (INFRA / "compose/databases.sql").read_text(), re.M):
            with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as connection:
                connection.execute(statement)  # type: ignore[arg-type]

        def here(text: str) -> str:
            text = text.replace(":${POSTGRES_PASSWORD:?}@postgres:5432", f"@127.0.0.1:{database.port}")
            return text.replace("http://objects:9000", objects).replace("5000", str(port))

        users = tmp_path / "basic_auth.ini"
        users.write_text(here(COMPOSE["configs"]["basic_auth"]["content"]))
        environment = {name: here(value) for name, value in about["environment"].items()} | {
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": "a-long-password",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "another",
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
            **KEYS,
        }
        assert not [value for value in environment.values() if "$" in value]
        command = [sys.executable, "-m", "mlflow", *map(here, about["command"]), "--workers=1"]
        with running(*command, answers=f"{url}/health", log=tmp_path / "mlflow.log", **environment):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            for password in ("", "wrong"):
                monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin" if password else "")
                monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
                with pytest.raises(MlflowException):
                    connect()
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
            client = connect()
            version = register(bundle)
            promote(client, version, "the first")
            assert champion(client) == version
            fetched = fetch_into(version, tmp_path / "fetched")
            assert fetched.digest == bundle.digest
            strangers = httpx.get(url, headers={"Host": "evil.example"}, timeout=WAIT_S)
            assert strangers.status_code == 403, "another name for this address"
    listed = urllib.request.urlopen(f"{objects}/mlflow", timeout=20).read().decode()
    assert "encoder.onnx" in listed, "artifacts went through the server into the object store"


def test_dvc_keeps_data_in_the_object_store(objects: str, tmp_path: Path) -> None:
    home = {**os.environ, **KEYS, "DVC_NO_ANALYTICS": "true"}

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    dvc = (sys.executable, "-m", "dvc")
    run("git", "init", "--quiet")
    run(*dvc, "init", "--quiet")
    run(*dvc, "remote", "add", "--default", "store", "s3://dvc")
    run(*dvc, "remote", "modify", "store", "endpointurl", objects)
    (tmp_path / "studies").mkdir()
    for number in range(3):
        (tmp_path / f"studies/{number}.png").write_bytes(os.urandom(1000))
    before = {file.name: file.read_bytes() for file in (tmp_path / "studies").iterdir()}
    run(*dvc, "add", "--quiet", "studies")
    run(*dvc, "push", "--quiet")
    shutil.rmtree(tmp_path / "studies")
    shutil.rmtree(tmp_path / ".dvc/cache")
    run(*dvc, "pull", "--quiet")
    assert {file.name: file.read_bytes() for file in (tmp_path / "studies").iterdir()} == before


def test_prometheus_scrapes_the_real_application(service: Service, sample: bytes, tmp_path: Path) -> None:
    assert shutil.which("prometheus"), "apt-get install prometheus"
    with served(service) as url:
        shutil.copytree(INFRA / "prometheus", tmp_path / "prometheus")
        config = yaml.safe_load((tmp_path / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
        (tmp_path / "prometheus/prometheus.yml").write_text(yaml.safe_dump(config))
        key = service.keys.create("prometheus", Role.ADMIN)[1]
        (tmp_path / "prometheus" / job["authorization"]["credentials_file"]).write_text(key)
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=WAIT_S) as client:
            assert client.post("/v1/studies", files={"file": sample}).status_code == 201
            assert client.get("/health/ready").is_success  # Ray asks this all the time
        own = f"http://127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={tmp_path}/prometheus/prometheus.yml"]
        command += [f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={own.removeprefix('http://')}"]
        with running(*command, answers=f"{own}/-/ready", log=tmp_path / "prometheus.log"):

            def ask(query: str) -> list[Any]:
                answer = httpx.get(f"{own}/api/v1/query", params={"query": query}, timeout=WAIT_S).json()
                return [float(each["value"][1]) for each in answer["data"]["result"]]

            def states() -> dict[str, str]:
                groups = httpx.get(f"{own}/api/v1/rules", timeout=WAIT_S).json()["data"]["groups"]
                rules = [rule for group in groups for rule in group["rules"]]
                assert not [rule for rule in rules if rule.get("lastError")]
                return {rule["name"]: rule["state"] for rule in rules}

            deadline = time.monotonic() + WAIT_S
            # Before the first scrape the server counts as one that does not answer.
            while not ask("csr_predictions_total") or set(states().values()) != {"inactive"}:
                assert time.monotonic() < deadline, httpx.get(f"{own}/api/v1/targets").text
                time.sleep(0.2)
            assert ask('up{job="csr"}') == [1.0] and ask("min(csr_ready)") == [1.0]
            assert ask("sum(csr_predictions_total)") == [1.0] and len(states()) == 7
