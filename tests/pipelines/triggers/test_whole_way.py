"""A real MLflow server and a real reading API on one side, a stand-in for GitHub on the other, the program between."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml
from cryptography.fernet import Fernet
from mlflow.tracking import MlflowClient

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.deploy.cluster import free_port
from serving.deploy.service import Service
from tests.pipelines.triggers.github import FakeGithub
from tests.processes import running, served
from tests.serving.conftest import bundle, engine, service

__all__ = ["bundle", "engine", "service"]


@pytest.fixture
def start(content: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
    """Starts the program with a configuration."""

    def run(**sections: Any) -> Any:
        port = free_port()
        about = {**content, **sections}
        if about["receiver"] is not None:
            about["receiver"] = about["receiver"] | {"port": port}
        file = tmp_path / "triggers.yaml"
        file.write_text(yaml.safe_dump(about))
        command = [sys.executable, "-m", "pipelines.triggers", "--config", str(file)]
        path = {"PYTHONPATH": str(Path(__file__).parents[3])}
        log, url = tmp_path / "triggers.log", f"http://127.0.0.1:{port}"
        return url, command, lambda: running(*command, "run", answers=f"{url}/health/live", log=log, **path)

    return run


@pytest.mark.filterwarnings("ignore")
def test_an_alias_that_moves_in_mlflow_starts_a_workflow(
    start: Callable[..., Any], tmp_path: Path, github: FakeGithub, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    mlflow_url = f"http://127.0.0.1:{port}"
    allowed = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",  # a receiver on this machine has neither TLS nor a public address
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    store = f"sqlite:///{tmp_path}/mlflow.db"
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    server += ["--workers", "1", "--default-artifact-root", str(tmp_path / "artifacts")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    url, command, program = start(feedback=None)
    with running(*server, answers=f"{mlflow_url}/health", log=tmp_path / "mlflow.log", **allowed):
        with program() as process:
            told = [*command, "register", f"{url}/webhooks/mlflow"]
            for done in ("made", "changed"):
                assert done in subprocess.run(told, check=True, capture_output=True, text=True).stdout
            client = MlflowClient(mlflow_url)
            client.create_registered_model("csr")
            for _ in range(2):
                client.create_model_version("csr", "s3://bundles/csr")
            client.set_registered_model_alias("csr", "challenger", "2")
            client.set_registered_model_alias("csr", "champion", "1")
            (first,) = github.wait_told(1)
            github.statuses = [(503, {})] * 1000  # GitHub is down when the champion moves, and the program is killed
            client.set_registered_model_alias("csr", "champion", "2")
            while github.asked < 2:
                time.sleep(0.02)
            process.kill()
            process.wait()
        github.statuses.clear()
        with program():
            second = github.wait_told(2)[1]
    assert {each["event_type"] for each in (first, second)} == {"champion-moved"}
    about = {"source": "mlflow", "name": "csr", "alias": "champion"}
    assert first["client_payload"] == {**about, "version": "1", "dispatch": 1}
    assert second["client_payload"] == {**about, "version": "2", "dispatch": 2}
    listed = subprocess.run([*command, "list"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(listed) == 2 and all("told at" in line for line in listed)


def test_readings_beyond_the_threshold_start_one_training(
    start: Callable[..., Any], content: dict[str, Any], github: FakeGithub, service: Service, bundle: Bundle
) -> None:
    watcher, key = service.keys.create("watcher", Role.READER)
    Path(content["feedback"]["key_file"]).write_text(key)
    images = sorted((bundle.path / "samples").glob("*.png"))[:5]
    reviewer = {"Authorization": f"Bearer {service.keys.create('ann', Role.REVIEWER)[1]}"}
    with served(service) as url, httpx.Client(base_url=url, headers=reviewer, timeout=120) as reader:
        added = [reader.post("/v1/studies", files={"file": each.read_bytes()}).json()["digest"] for each in images]

        def sign(digest: str) -> int:
            answer = reader.post(f"/v1/studies/{digest}/readings", json={"decision": "keep"})
            return int(answer.json()["record"]["number"])

        receiver, command, program = start(feedback=content["feedback"] | {"url": url})
        sign(added[0])
        sign(added[0])  # signed anew: of each study and reader one counts
        with program():
            _until(lambda: httpx.get(f"{receiver}/health/ready").is_success)
            time.sleep(0.5)  # two looks
            assert github.asked == 0
            last = sign(added[1])
            (first,) = github.wait_told(1)
            time.sleep(0.5)
        with program():
            time.sleep(0.5)
        assert len(github.told) == 1, "neither another look nor another process tells it again"
        assert first["event_type"] == "feedback-threshold"
        counts = {"after": 0, "through": last, "readings": 2, "reviews": 0}
        assert first["client_payload"] == {"source": "feedback", **counts, "dispatch": 1}

        sign(added[2])
        done = subprocess.run([*command, "check"], check=True, capture_output=True, text=True)
        assert "not enough" in done.stdout and len(github.told) == 1
        entries = [(each["concept"], each["index"]) for each in reader.get("/v1/atlas").json()["entries"][:3]]
        said = [{"concept": c, "index": i, "verdict": "keep"} for c, i in entries]
        assert reader.post("/v1/reviews", json={"reviews": said}).status_code == 201
        subprocess.run([*command, "check"], check=True, capture_output=True)
        assert github.wait_told(2)[1]["client_payload"]["reviews"] == 3

        service.keys.revoke(watcher.id)
        _until(lambda: httpx.get(f"{url}/v1/me", headers={"Authorization": f"Bearer {key}"}).status_code == 401)
        refused = subprocess.run([*command, "check"], check=False, capture_output=True, text=True)
        assert refused.returncode == 1 and "is the key a reader's" in refused.stderr


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
