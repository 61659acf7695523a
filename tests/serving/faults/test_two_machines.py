"""The application of a cluster of two machines without a common folder: one fails under load, nothing is lost."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

import pytest
import yaml

from csr.bundle.format import Bundle
from tests.machines import SWITCH, switch, wait_for
from tests.serving.postgres import postgres

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[3]
DEPLOYMENT = {
    "proxy_location": "EveryNode",
    "http_options": {"host": "0.0.0.0", "port": 8000},
    "applications": [
        {
            "name": "csr",
            "route_prefix": "/",
            "import_path": "serving.app:build",
            "args": {
                "model": {"bundle": "/tmp/bundle"},
                "replicas": {"least": 2, "most": 2, "cpus": 1},
                "access": {"rates": {"requests_per_minute": 10_000_000, "concurrent": 256}},
                "telemetry": {"log_level": "WARNING"},
            },
        }
    ],
}


@pytest.mark.timeout(1200)
def test_a_machine_of_two_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    with switch(tmp_path) as between, postgres(SWITCH, between.inside) as database:
        ledger_key = secrets.token_hex(32)
        environment = {
            "PYTHONPATH": str(ROOT),
            "CSR_STORE_URL": database.url,
            "CSR_LEDGER_KEY": ledger_key,
            "CSR_DICOM_SALT": secrets.token_hex(32),
            "FORWARDED_ALLOW_IPS": "",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.deploy.middleware.of_ray",
            "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # else one machine's proxy asks its own replica alone
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "OMP_NUM_THREADS": "1",
        }
        alpha, beta = between.machine("alpha"), between.machine("beta")
        for machine in (alpha, beta):
            shutil.copytree(bundle.path, machine.folder / "bundle")
        ray = ["ray", "start", "--num-cpus=1", f"--object-store-memory={80 << 20}", "--block"]
        head = ["--head", f"--node-ip-address={alpha.address}", "--port=6379"]
        alpha.start(*ray, *head, log="ray.log", **environment)
        wait_for(lambda: "Ray runtime started" in alpha.said("ray.log"), 120, lambda: alpha.said("ray.log"))
        joins = [f"--node-ip-address={beta.address}", f"--address={alpha.address}:6379"]
        beta.start(*ray, *joins, log="ray.log", **environment)
        alpha.run("python", "-m", "csr", "keys", "create", "admin", "--role", "admin", log="key", **environment)
        (alpha.folder / "serve.yaml").write_text(yaml.safe_dump(DEPLOYMENT))
        alpha.run("serve", "deploy", "serve.yaml", log="deploy.log", **environment)

        ask = {"url": f"http://{alpha.address}:8000", "key": alpha.said("key").strip().splitlines()[-1]}
        ask |= {"store": database.url, "sample": str(bundle.path / "samples/00.png")}
        (tmp_path / "ask.json").write_text(json.dumps(ask))
        (tmp_path / "ledger.key").write_text(ledger_key)
        asker = between.start("env", f"PYTHONPATH={ROOT}", "python", "-m", "tests.serving.faults.asker", str(tmp_path))

        def said() -> str:
            alpha.start("serve", "status", log="status.log", **environment).wait(60)
            return (tmp_path / "switch.log").read_text() + alpha.said("status.log") + alpha.said("deploy.log")

        wait_for(lambda: (tmp_path / "asking").exists() or asker.poll() is not None, 360, said)
        assert asker.poll() is None, said()
        beta.kill()
        (tmp_path / "killed").touch()
        assert asker.wait(180) == 0, said()
    heard = json.loads((tmp_path / "heard.json").read_text())
    assert set(heard["refused"]) <= {"unreachable", "http_error", "unexpected_answer"}, heard
    print(f"\ntwo machines: {heard}")
