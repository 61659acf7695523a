"""The application for a cluster that is there: what it refuses, and how it answers from one of one machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml

from csr.bundle.format import Bundle
from csr.errors import ConfigError
from serving.app import build
from serving.client import Client, InteractionRequest
from serving.deploy.cluster import free_port
from tests.serving.faults.load import Heard, check_ledger

ROOT = Path(__file__).parents[2]
START_S = 240.0
SECRET = "0123456789abcdef" * 4
# What `serve deploy` does, on a Ray of the test's own.
CLUSTER = """
import signal, sys, yaml
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from serving.app import build

ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
serve.start(http_options=HTTPOptions(port=int(sys.argv[1])))
serve.run(build(yaml.safe_load(open("args.yaml"))), name="csr")
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print("running", flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"model": {}}, "args: model: name either a bundle's folder or an alias"),
        ({"modle": {"bundle": "b"}}, "args: unknown key modle; did you mean 'model'"),
        ({"http": {"port": 80}}, "args: http: on a cluster Ray's proxies listen"),
        ({"http": {"tls": {"certificate": "a", "key": "b"}}}, "end TLS before them"),
        ({"grpc": {"port": 9000}}, r"args: grpc\.port: .*grpc_options"),
        ({"replicas": {"least": 1, "most": 2}}, r"args: replicas\.most: 2 replicas .* sqlite:///.* CSR_STORE_URL"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(args: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSR_STORE_URL", raising=False)
    with pytest.raises(ConfigError, match=why):
        build({"model": {"bundle": "build/bundle"}} | args)


def test_the_file_of_csr_serve_is_taken_as_it_is() -> None:
    build(yaml.safe_load((ROOT / "infra/serving.yaml").read_text()))


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a running application, and its folder."""
    folder, port = tmp_path_factory.mktemp("cluster"), free_port()
    store = {"url": f"sqlite:///{folder}/store.db"}
    (folder / "args.yaml").write_text(yaml.safe_dump({"model": {"bundle": str(bundle.path)}, "store": store}))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CSR_LEDGER_KEY": SECRET, "CSR_DICOM_SALT": SECRET}
    command = [sys.executable, "-c", CLUSTER, str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while "running\n" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", folder
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def key(server: tuple[str, Path]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CSR_LEDGER_KEY": SECRET}
    environment["CSR_STORE_URL"] = f"sqlite:///{server[1]}/store.db"
    command = [sys.executable, "-m", "csr", "keys", "create", "admin", "--role", "admin"]
    done = subprocess.run(command, cwd=server[1], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_application_answers_and_records_with_secrets_from_the_environment(
    server: tuple[str, Path], key: str, sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    heard = Heard()
    with Client(url, key) as client:
        digest = client.add_study(("a.png", sample)).digest
        for _ in range(5):
            answer = client.interact(digest, InteractionRequest(rejected=["mass"]))
            heard.add((answer.record.number, answer.record.hash), answer.model.digest, 0.0)
    (folder / "key").write_text(SECRET)
    check_ledger(heard, f"sqlite:///{folder}/store.db", folder / "key")
    assert not list(folder.glob(".state/**/*.key")), "no secret was made"


def test_numbers_are_of_nodes(server: tuple[str, Path], key: str) -> None:
    page = httpx.get(f"{server[0]}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=20, trust_env=False)
    assert page.headers["content-type"].startswith("text/plain")
    found = re.findall(r'^csr_interactions_total\{kind="answers",node="([0-9a-f]{12})"\} 5\.0$', page.text, re.M)
    assert len(found) == 1, page.text
