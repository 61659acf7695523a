from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.triggers.config import TriggersConfig, parse_config
from pipelines.triggers.outbox import Outbox
from pipelines.triggers.sender import TOKEN as TOKEN_VARIABLE
from tests.pipelines.triggers.github import TOKEN, FakeGithub, fake_github

SECRETS = {"github.token": TOKEN, "mlflow.secret": "whsec", "alerts.token": "alarm", "reader.key": "key"}


@pytest.fixture(autouse=True)
def no_secrets_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TOKEN_VARIABLE, "CSR_WEBHOOK_SECRET", "CSR_ALERTS_TOKEN", "CSR_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def github() -> Iterator[FakeGithub]:
    with fake_github() as server:
        yield server


@pytest.fixture
def content(tmp_path: Path, github: FakeGithub) -> dict[str, Any]:
    """A configuration whose files lie in the test's folder."""
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(secret + "\n")
    return {
        "github": {
            "api": github.url,
            "repository": "hospital/csr",
            "token_file": str(tmp_path / "github.token"),
            "timeout_s": 5,
        },
        "outbox": str(tmp_path / "outbox.db"),
        "receiver": {
            "mlflow": {"secret_file": str(tmp_path / "mlflow.secret")},
            "alertmanager": {"token_file": str(tmp_path / "alerts.token")},
        },
        "feedback": {"key_file": str(tmp_path / "reader.key"), "readings": 2, "reviews": 3, "every_s": 0.2},
    }


@pytest.fixture
def config(content: dict[str, Any]) -> TriggersConfig:
    return parse_config(content)


@pytest.fixture
def outbox(config: TriggersConfig) -> Outbox:
    return Outbox(config.outbox)
