"""The champion's atlas: what its prototypes are and do, what pruning some would do, and what reviewers say of them."""

from __future__ import annotations

from dataclasses import asdict

from csr.bundle.pruning import Pruning, PruningError
from serving.core.overlays import crop_with_map
from serving.core.reviews import review_entry, reviews, reviews_entry
from serving.core.timing import Timing
from serving.errors import InvalidPruningError, InvalidReviewError, NoValidationError
from serving.interfaces.schemas import (
    AtlasAnswer,
    AtlasEntryAnswer,
    DecidedStudy,
    PreviewAnswer,
    PreviewRequest,
    ReviewAnswer,
    ReviewedAnswer,
    ReviewRequest,
    ReviewsAnswer,
    ReviewsRequest,
    SimilarPrototype,
)
from serving.models.in_service import Model, ServedModels
from serving.store import Store
from serving.store.entries import Caller
from serving.telemetry import Telemetry


class AtlasRoom:
    """Thread-safe; every method blocks, see `serving.core.dataplane`.

    Args:
        models: what is in service.
        store: where reviews are kept.
        telemetry: is told how long it takes.
        second_reader: whether a prune counts only once two reviewers said it.
    """

    def __init__(self, models: ServedModels, store: Store, telemetry: Telemetry, second_reader: bool) -> None:
        self._models = models
        self._store = store
        self._telemetry = telemetry
        self._second_reader = second_reader

    def atlas(self) -> AtlasAnswer:
        """All prototypes.

        Raises:
            NotReadyError: there is no champion.
        """
        timing = Timing(self._telemetry)
        entries = self._models.champion.atlas.entries
        timing.lap("read")
        return AtlasAnswer(entries=entries, timings_ms=timing.milliseconds)

    def entry(self, concept: str, index: int) -> AtlasEntryAnswer:
        """One prototype, and what it does on the validation studies.

        Raises:
            UnknownConceptError, UnknownItemError: there is no such prototype.
            NotReadyError: there is no champion.
        """
        timing = Timing(self._telemetry)
        model = self._models.champion
        found = asdict(model.atlas.entry(concept, index))
        places, similar, decides = None, [], []
        if (pruning := model.pruning) is not None:
            places = pruning.places(concept, index).tolist()
            similar = [SimilarPrototype(**asdict(each)) for each in pruning.similar(concept, index)]
            decides = [DecidedStudy(**asdict(each)) for each in pruning.decides(concept, index)]
        timing.lap("explain")
        return AtlasEntryAnswer(
            **found,
            places=places,
            similar=similar,
            decides=decides,
            maps=model.atlas.has_maps,
            timings_ms=timing.milliseconds,
        )

    def crop(self, concept: str, index: int, rank: int, with_map: bool, timing: Timing) -> bytes:
        """What a prototype looks like in one of its sources, as PNG.

        Args:
            with_map: with its similarity map over it, on one scale for the whole atlas.

        Raises:
            UnknownConceptError, UnknownItemError: there is no such prototype, or no such source of it.
            NoValidationError: the bundle has no maps.
            NotReadyError: there is no champion.
        """
        atlas = self._models.champion.atlas
        if not with_map:
            png = atlas.crop(concept, index, rank)
        else:
            crop, similar, limit = atlas.crop_with_map(concept, index, rank)
            png = crop_with_map(crop, similar, limit)
        timing.lap("draw")
        return png

    def preview(self, request: PreviewRequest) -> PreviewAnswer:
        """What pruning would do, on the bundle's validation studies. Puts nothing on record.

        Raises:
            NoValidationError: the bundle has none.
            UnknownConceptError, UnknownItemError: there is no such prototype.
            InvalidPruningError: a concept would be left without any.
            NotReadyError: there is no champion.
        """
        timing = Timing(self._telemetry)
        model = self._models.champion
        for each in request.pruned:
            model.atlas.check_prototype(each.concept, each.index)
        try:
            effect = _pruning(model).preview((each.concept, each.index) for each in request.pruned)
        except PruningError as error:
            raise InvalidPruningError(str(error)) from None
        timing.lap("reason")
        return PreviewAnswer(**asdict(effect), timings_ms=timing.milliseconds)

    def review(self, concept: str, index: int, review: ReviewRequest, caller: Caller) -> ReviewAnswer:
        """Puts a reviewer's word on one of the prototypes on record.

        Raises:
            UnknownConceptError, UnknownItemError: there is no such prototype.
            StoreError: it is not on record.
            NotReadyError: there is no champion.
        """
        model = self._models.champion
        model.atlas.check_prototype(concept, index)
        self._store.ledger.append([review_entry(caller, model, concept, index, review)])
        return self._found(model)[concept, index]

    def review_all(self, request: ReviewsRequest, caller: Caller) -> ReviewedAnswer:
        """The same for several prototypes, as one entry of the ledger: all, or none.

        Raises:
            InvalidReviewError: a prototype is named twice.
            UnknownConceptError, UnknownItemError, StoreError, NotReadyError: see `review`.
        """
        model = self._models.champion
        named = [(each.concept, each.index) for each in request.reviews]
        for place, (concept, index) in enumerate(named):
            model.atlas.check_prototype(concept, index)
            if (concept, index) in named[:place]:
                raise InvalidReviewError(f"prototype {index} of {concept} is reviewed twice in one request")
        self._store.ledger.append([reviews_entry(caller, model, request)])
        found = self._found(model)
        return ReviewedAnswer(reviews=[found[each] for each in named])

    def reviews(self) -> ReviewsAnswer:
        """The last word on each of the prototypes, and who said what.

        Raises:
            StoreError: the store does not answer.
            NotReadyError: there is no champion.
        """
        timing = Timing(self._telemetry)
        found = list(reviews(self._store.ledger, self._models.champion.digest, self._second_reader))
        timing.lap("read")
        return ReviewsAnswer(reviews=found, second_reader=self._second_reader, timings_ms=timing.milliseconds)

    def _found(self, model: Model) -> dict[tuple[str, int], ReviewAnswer]:
        found = reviews(self._store.ledger, model.digest, self._second_reader)
        return {(each.concept, each.index): each for each in found}


def _pruning(model: Model) -> Pruning:
    if model.pruning is None:
        raise NoValidationError(
            f"version {model.version} was exported without validation studies, so nobody can say what pruning does to "
            "it; export the bundle again"
        )
    return model.pruning
