"""What is known beside the studies: the atlas and its reviews, the worklist, the models in service."""

from __future__ import annotations

from serving.core.recording import record, review_entry, reviews
from serving.core.timing import Timing
from serving.interfaces.schemas import (
    AtlasAnswer,
    ModelRef,
    ModelsAnswer,
    Order,
    Progress,
    ReviewAnswer,
    ReviewRequest,
    ReviewsAnswer,
    ServedModel,
    WorklistAnswer,
    WorklistItem,
)
from serving.models.changes import changes
from serving.models.in_service import ServedModels
from serving.store import Store
from serving.store.database import now
from serving.store.entries import Caller
from serving.store.studies import WorklistRow, worklist
from serving.telemetry import Telemetry


class Catalogue:
    """Thread-safe; every method blocks, see `serving.core.dataplane`.

    Args:
        models: what is in service.
        store: where reviews, assessments and the history are kept.
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

    def worklist(self, order: Order, progress: Progress, limit: int, offset: int) -> WorklistAnswer:
        """A page of the studies, the most urgent first.

        Raises:
            StoreError: the store does not answer.
        """
        timing = Timing(self._telemetry)
        rows = worklist(self._store.database, order, progress, limit + 1, offset)
        timing.lap("read")
        return WorklistAnswer(
            items=[_item(row) for row in rows[:limit]],
            next_offset=offset + limit if len(rows) > limit else None,
            timings_ms=timing.milliseconds,
        )

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


def _item(row: WorklistRow) -> WorklistItem:
    said = row.assessment
    return WorklistItem(
        digest=said.study,
        model=ModelRef(version=said.version, digest=said.bundle),
        top=said.top,
        margin=said.margin,
        expected_effect=said.expected_effect,
        asks_for_help=said.asks_for_help,
        abstains=said.abstains,
        assessed_at=row.assessed_at,
        interactions=row.interactions,
        last_interaction_at=row.last_interaction_at,
    )
