"""What is known beside the studies: the atlas and its reviews, the models in service."""

from __future__ import annotations

from serving.core.recording import record, review_entry, reviews
from serving.core.timing import Timing
from serving.interfaces.schemas import (
    AtlasAnswer,
    ModelsAnswer,
    ReviewAnswer,
    ReviewRequest,
    ReviewsAnswer,
    ServedModel,
)
from serving.models.changes import changes
from serving.models.in_service import ServedModels
from serving.store import Store
from serving.store.database import now
from serving.store.entries import Caller
from serving.telemetry import Telemetry


class Catalogue:
    """Thread-safe; every method blocks, see `serving.core.dataplane`.

    Args:
        models: what is in service.
        store: where reviews and the history are kept.
        telemetry: is told how long it takes.
    """

    def __init__(self, models: ServedModels, store: Store, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._models = models
        self._store = store

    def atlas(self) -> AtlasAnswer:
        """The champion's prototypes.

        Raises:
            NotReadyError: there is no champion.
        """
        timing = Timing(self._telemetry)
        entries = self._models.champion.atlas.entries
        timing.lap("read")
        return AtlasAnswer(entries=entries, timings_ms=timing.milliseconds)

    def review(self, concept: str, index: int, review: ReviewRequest, caller: Caller) -> ReviewAnswer:
        """Puts a reviewer's word on one of the champion's prototypes on record.

        Raises:
            UnknownConceptError, UnknownItemError: there is no such prototype.
            StoreError: it is not on record.
            NotReadyError: there is no champion.
        """
        model = self._models.champion
        model.atlas.check_prototype(concept, index)
        receipt = self._store.ledger.append([review_entry(caller, model, concept, index, review)])[0]
        return ReviewAnswer(
            bundle=model.digest,
            concept=concept,
            index=index,
            reviewer=caller.actor,
            at=now(),
            record=record(receipt),
            **review.model_dump(),
        )

    def reviews(self) -> ReviewsAnswer:
        """The last word on each of the champion's prototypes.

        Raises:
            StoreError: the store does not answer.
            NotReadyError: there is no champion.
        """
        timing = Timing(self._telemetry)
        found = list(reviews(self._store.ledger, self._models.champion.digest))
        timing.lap("read")
        return ReviewsAnswer(reviews=found, timings_ms=timing.milliseconds)

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
            )
            for role, model in self._models.in_service()
        ]
        return ModelsAnswer(
            models=served, refused=self._models.refused, history=history, timings_ms=timing.milliseconds
        )
