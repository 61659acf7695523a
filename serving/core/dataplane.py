"""The data plane: everything the server can do with a study, without a protocol. Adapters translate and nothing more.

Concurrency: every method may be called from any number of threads and blocks until it is done, so adapters call it
off their event loops. A study is encoded once a replica: uploads of the same pixels wait for the first. An interaction
carries its whole state and is a pure function of it and the encoded study; any replica can answer, since one that does
not hold the study takes its pixels from the store and encodes them again. What is predicted for somebody is in the
ledger before it is returned.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from weakref import WeakValueDictionary

import numpy as np
import sqlalchemy as sa

from csr.bundle.profile import FileFacts
from csr.data.images import Placement, to_png
from csr.interaction.corrections import Interaction, InteractionError, RegionBox
from csr.interaction.questions import Question
from serving.core.explain import compare
from serving.core.fit import MisfitAction, file_facts, require_fit
from serving.core.frames import image_part, on_canvas
from serving.core.intake import Intake, Upload
from serving.core.overlays import overlay_png, thumbnail_png
from serving.core.questions import asking, doubts, may_be_worth_asking, open_questions
from serving.core.reasoning import Reasoned, encoded_study, explain, reason
from serving.core.recording import interaction_entry, prediction_entry, record
from serving.core.shadow import Shadow
from serving.core.study_cache import EncodedStudy, StudyCache
from serving.core.timing import Timing
from serving.core.together import together
from serving.errors import (
    AlteredStudyError,
    CannotNameError,
    FrameError,
    InvalidInteractionError,
    MisfitError,
    NotReadyError,
    OtherInputError,
    StoreError,
)
from serving.interfaces.schemas import (
    CompareAnswer,
    Compared,
    Frame,
    ImageSize,
    InteractionAnswer,
    InteractionRequest,
    MapsAnswer,
    Prediction,
    ProbeAnswer,
    ProbeRequest,
    StudyAnswer,
)
from serving.models.in_service import Model, Role, ServedModels
from serving.store import Store
from serving.store.entries import Caller, Entry, Receipt
from serving.store.ledger import Also
from serving.store.studies import (
    Assessment,
    StoredStudy,
    keep_assessment,
    keep_study,
    load_sources,
    load_study,
    study_row,
)
from serving.telemetry import Telemetry

_DRIFT_EVERY = 10  # studies


class DataPlane:
    """Serves the models in service.

    Args:
        models: what is in service.
        store: where studies and the ledger are kept.
        intake: reads uploads.
        shadow: lets a challenger answer beside the champion.
        telemetry: is told what happens.
        cache_bytes: budget of the encoded studies held in memory.
        action: what follows if an image is unlike those that the model was trained on.
    """

    def __init__(
        self,
        models: ServedModels,
        store: Store,
        intake: Intake,
        shadow: Shadow,
        telemetry: Telemetry,
        cache_bytes: int,
        action: MisfitAction = "abstain",
    ) -> None:
        self.models = models
        self.store = store
        self._intake = intake
        self._shadow = shadow
        self._telemetry = telemetry
        self.action: MisfitAction = action
        self._studies = StudyCache(cache_bytes)
        self._encoding: WeakValueDictionary[tuple[str, str], threading.Lock] = WeakValueDictionary()
        self._encoding_guard = threading.Lock()

    def add_studies(self, uploads: Sequence[Upload], caller: Caller) -> list[StudyAnswer]:
        """Decodes, encodes (unless these pixels are held already), predicts, keeps and records: all files, or none.

        Raises:
            UnsupportedImageError, UnreadableImageError, BatchError: see `serving.core.intake.Intake.read`.
            MisfitError: one is unlike the images that the model was trained on, where such images are refused.
            StoreError: nothing was kept.
            NotReadyError: no model is in service.
        """
        timing = Timing(self._telemetry)
        about = self.models.champion.manifest
        stored = self._intake.read(uploads, about.channels, about.side, caller.actor, about.display)
        timing.lap("decode")
        encoded: list[tuple[Model, EncodedStudy]] = []
        assessments: dict[str, Assessment] = {}
        for upload, (model, study, assessment) in zip(uploads, self._all_encoded(stored, timing), strict=True):
            self._require_fit(study, upload.name)
            encoded.append((model, study))
            if assessment is not None:
                assessments[study.digest] = assessment

        rows = [study_row(each) for each in stored]

        def keep(connection: sa.Connection) -> list[Entry]:
            kept = [
                keep_study(connection, caller, row, each.source, assessments.get(each.digest))
                for each, row in zip(stored, rows, strict=True)
            ]
            return [entry for entries in kept for entry in entries]

        return self._answer(encoded, caller, timing, keep)

    def predict(self, digest: str, caller: Caller) -> StudyAnswer:
        """The prediction without interaction, again.

        Raises:
            UnknownStudyError: no study of this digest was added.
            OtherInputError: it was, for a model that looks at images of another size.
            MisfitError, StoreError, NotReadyError: see `add_studies`.
        """
        timing = Timing(self._telemetry)
        return self._answer([self._study(digest, timing)], caller, timing)[0]

    def interact(self, digest: str, request: InteractionRequest, caller: Caller) -> InteractionAnswer:
        """Applies an interaction to a study, and says what changed, what is doubted and what to ask next.

        Reasons once for the answer, and where there is something left to know twice more, for all questions that are
        open.

        Args:
            digest: the study's address.
            request: the whole state, boxes in pixels of the uploaded image.
            caller: who asks.

        Raises:
            FrameError: the study's image has another size than the one that the boxes were drawn on.
            InvalidInteractionError: a box outside the image, an unknown concept, or what contradicts itself.
            UnknownStudyError, OtherInputError, StoreError, NotReadyError: see `predict`.
        """
        timing = Timing(self._telemetry)
        model, study = self._study(digest, timing, request.image)
        before = study.prediction
        reasoned, after = explain(model, study, request, timing)
        changes, doubted = compare(before, after), doubts(model, study, reasoned.interaction)
        timing.lap("explain")
        if may_be_worth_asking(model, after):
            after = asking(model, after, open_questions(model, study, reasoned, after))
            timing.lap("assess")
        entry = interaction_entry(caller, model, digest, request, before, after, doubted, timing)
        receipt = self.put_on_record([entry], timing)[0]
        self._telemetry.metrics.interacted(request, flipped=before.found != after.found)
        self._shadow.ask(study, request, after, caller)
        return InteractionAnswer(
            digest=digest,
            model=model.ref,
            before=before,
            after=after,
            changes=changes,
            alpha=model.manifest.alpha if request.alpha is None else request.alpha,
            doubts=doubted,
            record=record(receipt),
            timings_ms=timing.milliseconds,
        )

    def corrected(
        self, digest: str, request: InteractionRequest, timing: Timing
    ) -> tuple[Model, Prediction, Prediction]:
        """The model that answers for a study, and its predictions without and with an interaction; recorded nowhere.

        Raises:
            As `interact`.
        """
        model, study = self._study(digest, timing, request.image)
        return model, study.prediction, explain(model, study, request, timing)[1]

    def compare(self, digest: str, request: InteractionRequest) -> CompareAnswer:
        """What champion and challenger say of a study, without and with an interaction; recorded nowhere.

        Raises:
            As `interact`; also if the challenger cannot apply the interaction.
        """
        timing = Timing(self._telemetry)
        said: dict[Role, Compared] = {}
        for role, each in self.models.in_service():
            model, study = self._study(digest, timing, request.image, each)
            after = explain(model, study, request, timing)[1]
            said[role] = Compared(model=model.ref, before=study.prediction, after=after)
        if "champion" not in said:
            raise NotReadyError("no model is loaded yet")
        return CompareAnswer(
            digest=digest,
            champion=said["champion"],
            challenger=said.get("challenger"),
            timings_ms=timing.milliseconds,
        )

    def probe(self, digest: str, request: ProbeRequest) -> ProbeAnswer:
        """What is in this box? Puts nothing on record, as nothing is said about the study.

        Raises:
            CannotNameError: the model's validation studies had too few boxes to learn that from.
            FrameError, InvalidInteractionError, UnknownStudyError, OtherInputError, StoreError: see `interact`.
        """
        timing = Timing(self._telemetry)
        model, study = self._study(digest, timing, request.image)
        if model.naming is None:
            raise CannotNameError("this model cannot tell what a box is about: it was validated on too few boxes")
        try:
            box = on_canvas(Interaction((RegionBox(**request.box.model_dump()),)), study.placement).boxes[0]
        except InteractionError as error:
            raise InvalidInteractionError(str(error).replace("boxes[0]", "box")) from None
        similarity = model.engine.reason(study.patches, [Interaction()], ["similarity_maps"])["similarity_maps"][0]
        timing.lap("reason")
        likely = model.naming.probabilities(study.maps, box, model.manifest.side)
        concepts = model.explainer.probe(likely, similarity, study.maps, box, study.placement)
        timing.lap("explain")
        return ProbeAnswer(
            digest=digest, model=model.ref, box=request.box, concepts=concepts, timings_ms=timing.milliseconds
        )

    def maps(self, digest: str, request: InteractionRequest | None = None) -> MapsAnswer:
        """All similarity maps as numbers, with or without an interaction.

        Raises:
            FrameError, InvalidInteractionError, UnknownStudyError, OtherInputError, StoreError: see `interact`.
        """
        timing = Timing(self._telemetry)
        model, study = self._study(digest, timing, request.image if request else None)
        maps = study.maps if request is None else reason(model, study, request).outputs["concept_maps"][0]
        timing.lap("reason")
        place = study.placement
        return MapsAnswer(
            digest=digest,
            model=model.ref,
            concepts=list(model.manifest.concepts),
            frame=Frame(side=model.manifest.side, scale=place.scale, left=place.left, top=place.top, turn=place.turn),
            limit=study.prediction.map_limit,
            absent=model.absent,
            maps=np.round(maps.astype(np.float64), 4).tolist(),
            timings_ms=timing.milliseconds,
        )

    def overlay(self, digest: str, concept: str, request: InteractionRequest | None, timing: Timing) -> bytes:
        """A concept's similarity map as a transparent PNG that covers the study's image.

        Raises:
            UnknownConceptError: no such concept.
            FrameError, InvalidInteractionError, UnknownStudyError, OtherInputError, StoreError: see `interact`.
        """
        model, study = self._study(digest, timing, request.image if request else None)
        model.atlas.check_concept(concept)
        maps = study.maps if request is None else reason(model, study, request).outputs["concept_maps"][0]
        timing.lap("reason")
        enlarged = model.explainer.upsampler.enlarge(maps[model.manifest.concepts.index(concept)])
        png = overlay_png(image_part(enlarged, study.placement), study.prediction.map_limit)
        timing.lap("draw")
        return png

    def size(self, digest: str, timing: Timing) -> ImageSize:
        """Of the uploaded image, in whose pixels boxes and peaks are.

        Raises:
            UnknownStudyError, OtherInputError, StoreError: see `predict`.
        """
        return _size(self._study(digest, timing)[1].placement)

    def thumbnail(self, digest: str, timing: Timing) -> bytes:
        """The study's image, small, as PNG. No model is asked.

        Raises:
            UnknownStudyError, AlteredStudyError, StoreError: see `serving.store.studies.load_study`.
        """
        stored = load_study(self.store.database, digest)
        timing.lap("load")
        png = thumbnail_png(image_part(stored.canvas, stored.placement))
        timing.lap("draw")
        return png

    def image(self, digest: str, timing: Timing) -> bytes:
        """The study as the network saw it, without margins and turned back as it is stored, as PNG.

        Raises:
            UnknownStudyError, OtherInputError, StoreError: see `predict`.
        """
        _, study = self._study(digest, timing)
        png = to_png(image_part(study.canvas, study.placement))
        timing.lap("draw")
        return png

    def _all_encoded(
        self, stored: Sequence[StoredStudy], timing: Timing
    ) -> list[tuple[Model, EncodedStudy, Assessment | None]]:
        """Several at once, so that they are encoded as a batch; the same pixels twice in turn, as the last counts."""

        def encode(each: StoredStudy, own: Timing) -> tuple[Model, EncodedStudy, Assessment | None]:
            model = self.models.for_study(each.digest)
            return (model, *self._encoded(model, each, own))

        if len(stored) == 1 or len({each.digest for each in stored}) < len(stored):
            return [encode(each, timing) for each in stored]
        timings = [Timing(self._telemetry) for _ in stored]
        encoded = together(lambda pair: encode(*pair), [*zip(stored, timings, strict=True)])
        timing.include(timings)
        return encoded

    def _encoded(self, model: Model, stored: StoredStudy, timing: Timing) -> tuple[EncodedStudy, Assessment | None]:
        """From the cache if it is there; the assessment is None unless there is something new to say."""
        with self._turn(model.digest, stored.digest):
            timing.lap("wait")
            held = self._studies.get(model.digest, stored.digest)
            self._telemetry.metrics.cache_lookup(held is not None)
            known = self._facts(stored.digest) if held is None else held.facts
            facts = tuple(dict.fromkeys([*known, *file_facts([(stored.source, stored.coloured)])]))
            if held is not None and held.placement == stored.placement and facts == known:
                return held, None
            study, reasoned = encoded_study(
                model, stored.digest, stored.canvas, stored.placement, facts, self.action, timing, held
            )
            found = open_questions(model, study, reasoned, study.prediction)
            study = replace(study, prediction=asking(model, study.prediction, found))
            timing.lap("assess")
            self._studies.put(study)
            self._telemetry.metrics.cache_size(len(self._studies), self._studies.nbytes)
        if held is not None and held.prediction.abstains == study.prediction.abstains:
            return study, None
        if held is None:
            self._note_drift(model, study, reasoned)
        return study, _assessment(model, study, found)

    def _answer(
        self,
        encoded: Sequence[tuple[Model, EncodedStudy]],
        caller: Caller,
        timing: Timing,
        keep: Also | None = None,
    ) -> list[StudyAnswer]:
        entries = [
            prediction_entry(caller, model, study.digest, _size(study.placement), study.prediction, timing)
            for model, study in encoded
        ]
        receipts = self.put_on_record(entries, timing, keep)
        for model, study in encoded:
            said = study.prediction
            self._telemetry.metrics.predicted(model.version, said.top, said.abstains, said.asks_for_help)
            self._telemetry.metrics.judged(said.fits)
            self._shadow.ask(study, None, said, caller)
        return [
            StudyAnswer(
                digest=study.digest,
                image=_size(study.placement),
                model=model.ref,
                prediction=study.prediction,
                record=record(receipt),
                timings_ms=timing.milliseconds,
            )
            for (model, study), receipt in zip(encoded, receipts, strict=True)
        ]

    def put_on_record(self, entries: Sequence[Entry], timing: Timing, keep: Also | None = None) -> list[Receipt]:
        """Appends to the ledger, and tells telemetry.

        Raises:
            As `serving.store.ledger.Ledger.append`.
        """
        try:
            receipts = self.store.ledger.append(entries, keep)
        except StoreError:
            self._telemetry.metrics.ledger_failed()
            raise
        self._telemetry.metrics.ledger_appended(timing.lap("record"))
        return receipts

    def _keep_assessment(self, assessment: Assessment) -> None:
        self.store.ledger.append((), lambda connection: keep_assessment(connection, assessment))

    def _note_drift(self, model: Model, study: EncodedStudy, reasoned: Reasoned) -> None:
        model.drift.add(reasoned.outputs["concept_probabilities"][0])
        model.fit_drift.add(np.array([study.prediction.fits.score]))
        if model.drift.studies % _DRIFT_EVERY == 0:
            self._telemetry.metrics.concept_drift(model.drift.values())
            (value,) = model.fit_drift.values().values()
            self._telemetry.metrics.fit_drift(value)

    def _require_fit(self, study: EncodedStudy, name: str = "the study") -> None:
        try:
            require_fit(study.prediction.fits, name)
        except MisfitError:
            self._telemetry.metrics.judged(study.prediction.fits)
            raise

    def _facts(self, digest: str) -> tuple[FileFacts, ...]:
        """What the files said that a study came as before, to any replica.

        Raises:
            AlteredStudyError: the store does not hold what they said.
        """
        try:
            return file_facts((each.source, False) for each in load_sources(self.store.database, digest))
        except (ValueError, AttributeError, TypeError):
            raise AlteredStudyError(
                f"study {digest[:12]}: the store does not hold what was added (a DICOM source cannot be read); tell "
                "who runs this server"
            ) from None

    def _turn(self, bundle: str, digest: str) -> AbstractContextManager[object]:
        """A lock of this study; it vanishes with the last thread that holds or awaits it."""
        with self._encoding_guard:
            return self._encoding.setdefault((bundle, digest), threading.Lock())

    def _study(
        self, digest: str, timing: Timing, drawn_on: ImageSize | None = None, model: Model | None = None
    ) -> tuple[Model, EncodedStudy]:
        """Under the model that answers for the study, or another."""
        own = self.models.for_study(digest)
        model = own if model is None else model
        study = self._studies.get(model.digest, digest)
        if study is not None:
            self._telemetry.metrics.cache_lookup(True)
        if study is None or (drawn_on is not None and not drawn_on.fits(_size(study.placement))):
            # Another replica may have seen a later upload.
            stored = load_study(self.store.database, digest)
            timing.lap("load")
            if stored.canvas.shape != model.canvas_shape:
                raise OtherInputError(
                    f"the study was added for a model that looks at {stored.canvas.shape[-1]} pixels, this one looks "
                    f"at {model.manifest.side}; upload it again"
                )
            study, assessment = self._encoded(model, stored, timing)
            if assessment is not None and model is own:
                self._keep_assessment(assessment)
        if drawn_on is not None and not drawn_on.fits(known := _size(study.placement)):
            raise FrameError(
                f"image: is {drawn_on.width}×{drawn_on.height} here, but the study was last uploaded as "
                f"{known.width}×{known.height}{', or lay otherwise' if drawn_on.turn else ''}; upload yours again"
            )
        self._require_fit(study)
        return model, study


def _assessment(model: Model, study: EncodedStudy, found: Sequence[Question]) -> Assessment:
    said = study.prediction
    return Assessment(
        study=study.digest,
        bundle=model.digest,
        version=model.version,
        top=said.top,
        margin=said.margin,
        expected_effect=found[0].effect,
        asks_for_help=said.asks_for_help,
        abstains=said.abstains,
        confidence=max(each.probability for each in said.classes),
        found=tuple(said.found),
        fits=not said.fits.reasons,
    )


def _size(placement: Placement) -> ImageSize:
    return ImageSize(width=placement.width, height=placement.height, turn=placement.turn)
