"""``infra/triggers.yaml``: which events become which dispatch, checked once. It names the files that hold secrets."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from csr.errors import ConfigError

Event = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]  # GitHub takes up to 100 characters
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GithubConfig(_Section):
    """Who is told.

    Args:
        api: of GitHub, or of a GitHub Enterprise server (``https://HOST/api/v3``).
        repository: ``owner/name``.
        token_file: a token that may write the repository's contents; ``CSR_GITHUB_TOKEN`` goes before it.
        timeout_s: of one call.
    """

    api: Annotated[str, Field(pattern=r"^https?://")] = "https://api.github.com"
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    token_file: Path = Path(".state/triggers/github.token")
    timeout_s: Seconds = 20.0


class TLSConfig(_Section):
    """PEM files of the certificate chain and its key."""

    certificate: Path
    key: Path


class MlflowConfig(_Section):
    """MLflow's webhooks.

    Args:
        secret_file: what the webhook was registered with; ``CSR_WEBHOOK_SECRET`` goes before it.
        model: whose aliases count.
        aliases: alias → event to dispatch once it was moved.
        window_s: how far a message's time may be from now; older ones are replays.
    """

    secret_file: Path = Path(".state/triggers/mlflow.secret")
    model: str = "csr"
    aliases: dict[str, Event] = {"champion": "champion-moved"}
    window_s: Seconds = 300.0


class AlertmanagerConfig(_Section):
    """Alertmanager's webhooks.

    Args:
        token_file: the bearer token that Alertmanager sends; ``CSR_ALERTS_TOKEN`` goes before it.
        alerts: alert → event to dispatch once it fires.
    """

    token_file: Path = Path(".state/triggers/alerts.token")
    alerts: dict[str, Event] = {"CsrConceptDrift": "drift-alert", "CsrFitDrift": "drift-alert"}


class ReceiverConfig(_Section):
    """Where webhooks arrive; TLS by a proxy before it if ``tls`` is null."""

    host: str = "127.0.0.1"
    port: int = Field(default=8090, ge=0, le=65535)
    tls: TLSConfig | None = None
    mlflow: MlflowConfig | None = MlflowConfig()
    alertmanager: AlertmanagerConfig | None = AlertmanagerConfig()


class FeedbackConfig(_Section):
    """The feedback threshold.

    Args:
        url: of the server.
        key_file: a reader's API key; ``CSR_API_KEY`` goes before it.
        readings, reviews: so many that are new are enough, of either.
        after: the ledger's entry to count from at the first look; 0 for all.
        every_s: seconds between two looks.
        event: to dispatch.
        timeout_s: of one call.
    """

    url: Annotated[str, Field(pattern=r"^https?://")] = "http://127.0.0.1:8000"
    key_file: Path = Path(".state/triggers/reader.key")
    readings: Annotated[int, Field(ge=1)] = 200
    reviews: Annotated[int, Field(ge=1)] = 50
    after: Annotated[int, Field(ge=0)] = 0
    every_s: Seconds = 300.0
    event: Event = "feedback-threshold"
    timeout_s: Seconds = 20.0


class TriggersConfig(_Section):
    """The whole file.

    Args:
        outbox: a SQLite file on a disk that outlives the process.
    """

    github: GithubConfig
    outbox: Path = Path(".state/triggers/outbox.db")
    receiver: ReceiverConfig | None = ReceiverConfig()
    feedback: FeedbackConfig | None = FeedbackConfig()

    @model_validator(mode="after")
    def _something_to_do(self) -> TriggersConfig:
        if self.receiver is None and self.feedback is None:
            raise ValueError("neither receiver nor feedback: there is nothing to do")
        return self


def load_config(file: Path) -> TriggersConfig:
    """Raises:
    ConfigError: the file is missing, is not YAML, or says what cannot be: with the key and what to do.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not YAML ({error})") from None
    return parse_config(content, str(file))


def parse_config(content: Any, name: str = "config") -> TriggersConfig:
    """The same for what a file holds.

    Raises:
        ConfigError: see `load_config`.
    """
    try:
        return TriggersConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), _keys(first["loc"][:-1]), n=1, cutoff=0)
            raise ConfigError(f"{name}: unknown key {place}; did you mean {near[0]!r}?") from None
        raise ConfigError(f"{name}: {place}: {str(first['msg']).removeprefix('Value error, ')}") from None


def secret(file: Path, variable: str) -> str:
    """What an environment variable holds, else a file.

    Raises:
        ConfigError: neither is there, or it is empty.
    """
    given, where = os.environ.get(variable), variable
    if given is None:
        where = str(file)
        try:
            given = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise ConfigError(f"{file}: cannot be read ({reason}); or set {variable}") from None
    if not given.strip() or not given.strip().isprintable() or not given.isascii():
        raise ConfigError(f"{where}: holds no secret, which is one line of printable characters")
    return given.strip()


def _keys(path: tuple[Any, ...]) -> list[str]:
    section: Any = TriggersConfig
    for part in path:
        found = section.model_fields[part].annotation
        options = [found, *getattr(found, "__args__", ())]
        section = next(each for each in options if isinstance(each, type) and issubclass(each, BaseModel))
    return list(section.model_fields)
