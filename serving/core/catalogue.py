"""The models in service, what they say side by side, and what was before."""

from __future__ import annotations

from serving.core.timing import Timing
from serving.interfaces.schemas import ModelsAnswer, RollbackAnswer, RollbackRequest, ServedModel
from serving.models.changes import changes
from serving.models.in_service import ServedModels
from serving.models.way_back import WayBack
from serving.store import Store
from serving.store.database import now
from serving.store.entries import Caller
from serving.telemetry import Telemetry


class Catalogue:
    """Thread-safe; every method blocks, see `serving.core.dataplane`.

    Args:
        models: what is in service.
        store: where the history is kept.
        telemetry: is told how long it takes.
        way_back: of the champion.
    """

    def __init__(self, models: ServedModels, store: Store, telemetry: Telemetry, way_back: WayBack) -> None:
        self._way_back = way_back
        self._telemetry = telemetry
        self._models = models
        self._store = store

    def models(self) -> ModelsAnswer:
        """What is in service, since when, and what was before.

        Raises:
            StoreError: the store does not answer.
        """
        timing = Timing(self._telemetry)
        history = changes(self._store.ledger)
        timing.lap("read")
        since = {(change.role, change.digest): change.at for change in history}
        served = [
            ServedModel(
                role=role,
                version=model.version,
                digest=model.digest,
                since=since.get((role, model.digest), ""),
                manifest=model.manifest,
                prototypes=len(model.atlas.entries),
                live=sum(entry.alive for entry in model.atlas.entries),
                mb=round(model.bundle.bytes / 1e6, 3),
            )
            for role, model in self._models.in_service()
        ]
        return ModelsAnswer(
            models=served, refused=self._models.refused, history=history, timings_ms=timing.milliseconds
        )

    def rollback(self, request: RollbackRequest, caller: Caller) -> RollbackAnswer:
        """Points the registry's champion back at the version before; the followers put it into service.

        Raises:
            NoRollbackError, RegistryUnavailableError: see `serving.models.way_back`.
        """
        move = self._way_back.rollback(request.reason, caller.actor)
        return RollbackAnswer(source=move.source, target=move.target, at=now())
