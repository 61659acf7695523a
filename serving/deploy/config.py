"""``infra/serving.yaml``: what one deployment of the server is, checked once, before anything starts.

Every key has a default but ``model``; an unknown key is an error that names its nearest neighbour. Secrets are never
in it: it names the files that hold them. Relative paths are relative to the folder the server is started in.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, ValidationError, model_validator
from starlette.types import Scope

from csr.errors import ConfigError
from serving.access.oidc import OidcConfig
from serving.access.rates import RateLimits
from serving.access.secrets import read_secret
from serving.access.sessions import SessionLimits
from serving.core.decoding import DecodingLimits
from serving.core.fit import MisfitAction
from serving.dicom.node_config import NodeConfig
from serving.interfaces.rest.limits import FORM_OVERHEAD, JSON_BYTES

ADMIN_KEY = Path(".state/serving/admin.key")
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegistryConfig(_Section):
    """MLflow's model registry.

    Args:
        uri: its tracking URI; None takes ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db``.
        name: of the registered model.
        poll_s: seconds between two looks at the aliases.
        folder: where fetched bundles are kept.
    """

    uri: str | None = None
    name: str = "csr"
    poll_s: Seconds = 5.0
    folder: Path = Path(".state/serving/bundles")


class ModelConfig(_Section):
    """What is served: a bundle's folder, or the bundle that the registry's alias points at.

    Args:
        bundle: the folder. version: what to call what lies there, for example in Triton's repository.
        alias: in the registry, which has versions of its own.
    """

    bundle: Path | None = None
    version: Count = 1
    alias: str | None = None
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelConfig:
        if (self.bundle is None) == (self.alias is None):
            raise ValueError("name either a bundle's folder or an alias of the registry")
        return self


class ChallengerConfig(_Section):
    """A model on trial, see `serving.models.in_service.Challenge`; ``alias`` or ``bundle`` as in `ModelConfig`."""

    bundle: Path | None = None
    version: Count = 2
    alias: str | None = None
    mode: Literal["shadow", "weighted"] = "shadow"
    share: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> ChallengerConfig:
        if (self.bundle is None) == (self.alias is None):
            raise ValueError("name either a bundle's folder or an alias of the registry")
        if self.mode == "weighted" and self.share == 0:
            raise ValueError("share: a weighted challenger needs a share of the studies above 0")
        return self


class EngineConfig(_Section):
    """What runs the graphs.

    Args:
        kind: ``ort``, ONNX Runtime in each replica, or ``triton``, a Triton server.
        threads: of a session (``ort``).
        device: ``cpu`` or ``cuda`` (``ort``); ``cuda`` fails rather than falling back.
        url: host:port of Triton's gRPC (``triton``).
        timeout_s: of one call (``triton``).
    """

    kind: Literal["ort", "triton"] = "ort"
    threads: Count = 1
    device: Literal["cpu", "cuda"] = "cpu"
    url: str = "127.0.0.1:8001"
    timeout_s: Seconds = 10.0


class TLSConfig(_Section):
    """PEM files of the certificate chain and its key."""

    certificate: Path
    key: Path


class HTTPConfig(_Section):
    """Where HTTP is served and what a request may be.

    Args:
        host, port: to listen on.
        tls: None for plain HTTP, behind something that ends TLS.
        trusted_proxies: addresses or networks of what stands before this server, whose ``X-Forwarded-For`` says who
            asks, by gRPC too; anybody else's is not believed. See `serving.access.addresses`.
        body_seconds: within which a request's body must have arrived.
        upload_mb: of one file. batch_mb, batch_files: of one batch.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    tls: TLSConfig | None = None
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    body_seconds: Seconds = 30.0
    upload_mb: Count = 64
    batch_mb: Count = 256
    batch_files: Count = 32

    def body_bytes(self, scope: Scope) -> int:
        """The limit for a request's body."""
        path = scope["path"]
        content_type = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        if content_type.startswith(b"multipart/form-data"):
            return ((self.batch_mb if path.endswith("/batch") else self.upload_mb) << 20) + FORM_OVERHEAD
        return self.upload_mb << 20 if path.startswith("/v2/") else JSON_BYTES


class DecodingConfig(_Section):
    """What one uploaded file may cost; see `serving.core.decoding.DecodingLimits`."""

    workers: Count = 3
    seconds: Seconds = 10.0
    memory_mb: int = Field(default=2048, ge=256)

    @property
    def limits(self) -> DecodingLimits:
        return DecodingLimits(self.workers, self.seconds, self.memory_mb)


class InputGuardConfig(_Section):
    """What follows if an image is unlike those that the model was trained on.

    Args:
        action: ``warn``: the answer says so; ``abstain``: and the model abstains; ``refuse``: 422 instead of an answer.
    """

    action: MisfitAction = "abstain"


class GRPCConfig(_Section):
    """Where the Open Inference Protocol is served by gRPC; None: nowhere."""

    port: int | None = Field(default=None, ge=1, le=65535)


class ReplicaConfig(_Section):
    """How many processes answer, and how much each takes on.

    Args:
        least, most: replicas; more are started while each has more than ``target_ongoing`` requests.
        ongoing: requests that a replica answers at once. queued: that may wait beside them; the rest gets 503.
        retry_after_s: what the 503 says.
        cpus, gpus: that Ray sets aside for a replica; book-keeping, not isolation.
        drain_s: that a replica which is told to stop has to finish what it began.
    """

    least: Count = 1
    most: Count = 1
    target_ongoing: Annotated[float, Field(gt=0)] = 8.0
    ongoing: Count = 32
    queued: Count = 128
    retry_after_s: Count = 1
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    drain_s: Seconds = 20.0

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaConfig:
        if self.most < self.least:
            raise ValueError(f"most: {self.most} is less than least: {self.least}")
        return self


class BatchConfig(_Section):
    """How images that arrive together are encoded as one batch; interactions never wait for one another.

    Args:
        images: at most in a batch.
        wait_ms: that an image waits for others; 0 takes whatever gathered while the last batch was computed.
    """

    images: Count = 8
    wait_ms: float = Field(default=0.0, ge=0)


class StoreConfig(_Section):
    """The SQL store, see `serving.store.database`.

    Args:
        url: of the database; None takes ``CSR_STORE_URL``, else a SQLite file in ``.state/serving``. A password belongs
            into the environment variable.
        ledger_key_file: of the key that seals the ledger, if ``CSR_LEDGER_KEY`` does not hold it; made at the first
            start if it is missing.
    """

    url: str | None = None
    ledger_key_file: Path = Path(".state/serving/ledger.key")

    def ledger_key(self, make: bool = True) -> bytes:
        """See `serving.access.secrets.read_secret`."""
        return read_secret(self.ledger_key_file, "CSR_LEDGER_KEY", make)

    @property
    def address(self) -> str:
        """The database's URL."""
        return self.url or os.environ.get("CSR_STORE_URL") or "sqlite:///.state/serving/store.db"


class AccessConfig(_Section):
    """Who may ask, and how often.

    Args:
        rates: limits of one replica.
        sessions: when browsers that signed in have to do so again.
        oidc: an identity provider whose tokens are taken beside API keys.
        admin_key_file: where the first API key is left, if there is none yet.
    """

    rates: RateLimits = RateLimits()
    sessions: SessionLimits = SessionLimits()
    oidc: OidcConfig | None = None
    admin_key_file: Path = ADMIN_KEY


class ReviewConfig(_Section):
    """Reviews of the atlas.

    Args:
        second_reader: a prune counts only once two reviewers said it (`serving.core.reviews`).
    """

    second_reader: bool = False


class DicomConfig(_Section):
    """DICOM images and archives.

    Args:
        salt_file: of the pseudonyms of studies and images, if ``CSR_DICOM_SALT`` does not hold it; made at the first
            start if it is missing. Keep it: with another one nothing can be sent back to where it came from.
        nodes: DICOMweb archives by name, see `serving.dicom.node_config.NodeConfig`.
    """

    salt_file: Path = Path(".state/serving/salt.key")
    nodes: dict[str, NodeConfig] = {}

    def salt(self, make: bool = True) -> bytes:
        """See `serving.access.secrets.read_secret`."""
        return read_secret(self.salt_file, "CSR_DICOM_SALT", make)


class TelemetryConfig(_Section):
    """What the server says of itself.

    Args:
        traces: the address of an OpenTelemetry collector; None: no traces.
        sample_ratio: of requests that are traced, where the client did not decide.
        log_level: the least that is logged.
    """

    traces: str | None = None
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class ServerConfig(_Section):
    """The whole file."""

    model: ModelConfig
    challenger: ChallengerConfig | None = None
    engine: EngineConfig = EngineConfig()
    http: HTTPConfig = HTTPConfig()
    grpc: GRPCConfig = GRPCConfig()
    replicas: ReplicaConfig = ReplicaConfig()
    encoder_batch: BatchConfig = BatchConfig()
    cache_mb: Count = 256
    decoding: DecodingConfig = DecodingConfig()
    input_guard: InputGuardConfig = InputGuardConfig()
    store: StoreConfig = StoreConfig()
    access: AccessConfig = AccessConfig()
    review: ReviewConfig = ReviewConfig()
    dicom: DicomConfig = DicomConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    def check_secrets(self, make: bool = True) -> None:
        """Raises:
        ConfigError: a secret is not there, and cannot or must not be made.
        """
        self.store.ledger_key(make)
        self.dicom.salt(make)
        if self.access.oidc is not None:
            self.access.oidc.pseudonym_salt(make)


def load_config(file: Path) -> ServerConfig:
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


def parse_config(content: Any, name: str = "config") -> ServerConfig:
    """The same for what a file holds.

    Raises:
        ConfigError: see `load_config`.
    """
    try:
        return ServerConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), _keys(first["loc"][:-1]), n=1, cutoff=0)
            raise ConfigError(f"{name}: unknown key {place}; did you mean {near[0]!r}?") from None
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"{name}: {place}: {message}") from None


def _keys(path: tuple[Any, ...]) -> list[str]:
    section: Any = ServerConfig
    for part in path:
        found = section.model_fields[part].annotation
        options = [found, *getattr(found, "__args__", ())]
        section = next(each for each in options if isinstance(each, type) and issubclass(each, BaseModel))
    return list(section.model_fields)
