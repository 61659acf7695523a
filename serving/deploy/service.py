"""Everything that one replica serves with, opened from its configuration and closed as one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from csr.bundle.format import Bundle
from serving.access.addresses import Addresses
from serving.access.authenticator import Authenticator
from serving.access.keys import KeyStore
from serving.access.oidc import TokenVerifier
from serving.access.rates import Rates
from serving.access.sessions import SessionStore
from serving.core.atlas import AtlasRoom
from serving.core.catalogue import Catalogue
from serving.core.dataplane import DataPlane
from serving.core.decoding import DecodingPool
from serving.core.intake import Intake
from serving.core.readings import Readings
from serving.core.shadow import Shadow
from serving.deploy.config import (
    AccessConfig,
    ChallengerConfig,
    EngineConfig,
    HTTPConfig,
    ModelConfig,
    ServerConfig,
)
from serving.dicom.exchange import Documents
from serving.dicom.nodes import Node
from serving.engines import Engine, OrtEngine, TritonEngine
from serving.errors import ServingError
from serving.interfaces.oip import ServedVersions
from serving.interfaces.oip.inference import AuditedInference
from serving.models.follower import Follower, MakeEngine, Watch
from serving.models.in_service import ServedModels
from serving.models.sources import AliasSource, FolderSource, Source
from serving.models.way_back import WayBack
from serving.store import Store
from serving.store.database import Database
from serving.store.probe import WriteProbe
from serving.telemetry import Telemetry

_LOCAL_REGISTRY = "sqlite:///mlflow.db"


@dataclass(frozen=True)
class Service:
    """What adapters are given."""

    models: ServedModels
    store: Store
    plane: DataPlane
    catalogue: Catalogue
    atlas: AtlasRoom
    readings: Readings
    documents: Documents
    telemetry: Telemetry
    limits: HTTPConfig
    authenticator: Authenticator
    keys: KeyStore
    addresses: Addresses
    probe: WriteProbe
    shadow: Shadow
    watch: Watch
    decoding: DecodingPool | None

    @classmethod
    def open(
        cls,
        config: ServerConfig,
        telemetry: Telemetry,
        make: MakeEngine,
        own_proxy: bool = False,
        decoding: DecodingPool | None = None,
    ) -> Service:
        """Opens the store and puts into service what should be; a model that is refused is no error here, the service
        is just not ready.

        Args:
            config: of the deployment.
            telemetry: of this process.
            make: makes engines; `engine_maker`, or something around what that makes.
            own_proxy: see `serving.access.addresses.Addresses`.
            decoding: a pool that others use, too, and somebody else closes; None: one of its own.

        Raises:
            StoreError, ConfigError: it cannot be opened.
        """
        store = Store.open(config.store.address, config.store.ledger_key())
        keys = KeyStore(store)
        models = ServedModels()
        followers = [Follower("champion", _source(config.model, config.model), make, models, store, telemetry)]
        if (trial := config.challenger) is not None:
            source = _source(trial, config.model)
            followers.append(Follower("challenger", source, make, models, store, telemetry, (trial.mode, trial.share)))
        watch = Watch(followers, config.model.registry.poll_s)
        watch.start()
        action = config.input_guard.action
        shadow = Shadow(models, store.ledger, telemetry, action)
        salt = config.dicom.salt()
        own = None if decoding else DecodingPool(config.decoding.limits)
        pool = decoding or own
        assert pool is not None
        intake = Intake(pool, salt)
        plane = DataPlane(models, store, intake, shadow, telemetry, config.cache_mb << 20, action)
        readings = Readings(plane, store, telemetry)
        nodes = {name: Node(name, each) for name, each in config.dicom.nodes.items()}
        return cls(
            models=models,
            store=store,
            plane=plane,
            catalogue=Catalogue(models, store, telemetry, _way_back(config.model)),
            atlas=AtlasRoom(models, store, telemetry, config.review.second_reader),
            readings=readings,
            documents=Documents(plane, readings, nodes, salt, telemetry),
            telemetry=telemetry,
            limits=config.http,
            authenticator=_authenticator(config.access, keys, store.database),
            keys=keys,
            addresses=Addresses(config.http.trusted_proxies, own_proxy),
            probe=WriteProbe(store.database),
            shadow=shadow,
            watch=watch,
            decoding=own,
        )

    def inference(self) -> AuditedInference:
        """The models for one request that brings tensors, as they are now; the champion is the default version.

        Raises:
            NotReadyError: no model is in service.
        """
        champion = self.models.champion
        # The champion last: it is the one if a challenger has the same version.
        served = [*(model for role, model in self.models.in_service() if role == "challenger"), champion]
        return AuditedInference(
            ServedVersions({model.version: model for model in served}, champion.version),
            self.store.ledger,
            self.telemetry,
            self.plane.action,
        )

    def check_ready(self) -> None:
        """Raises:
        NotReadyError: no model is in service, or its engine cannot answer.
        StoreError: the store takes no writes.
        """
        try:
            self.models.champion.engine.ready()
            self.probe.check()
            self.store.ledger.check()
        except ServingError:
            self.telemetry.metrics.ready(False)
            raise
        self.telemetry.metrics.ready(True)

    def close(self) -> None:
        """Finishes what waits."""
        self.watch.close()
        self.shadow.close()
        if self.decoding is not None:
            self.decoding.close()
        self.authenticator.close()
        self.probe.close()
        self.store.database.close()
        self.telemetry.tracing.close()


def engine_maker(config: EngineConfig) -> MakeEngine:
    """Makes the engine that the configuration names."""

    def make(bundle: Bundle, version: str) -> Engine:
        if config.kind == "triton":
            return TritonEngine(bundle, config.url, int(version), config.timeout_s)
        return OrtEngine(bundle, config.threads, config.device)

    return make


def _authenticator(config: AccessConfig, keys: KeyStore, database: Database) -> Authenticator:
    tokens = TokenVerifier(config.oidc) if config.oidc else None
    return Authenticator(keys, SessionStore(database, config.sessions), tokens, Rates(config.rates))


def _source(which: ModelConfig | ChallengerConfig, model: ModelConfig) -> Source:
    if which.bundle is not None:
        return FolderSource(which.bundle, which.version)
    assert which.alias is not None
    return AliasSource(_registry_uri(model), model.registry.name, which.alias, model.registry.folder)


def _way_back(model: ModelConfig) -> WayBack:
    return WayBack(_registry_uri(model), model.registry.name, model.alias)


def _registry_uri(model: ModelConfig) -> str:
    return model.registry.uri or os.environ.get("MLFLOW_TRACKING_URI") or _LOCAL_REGISTRY
