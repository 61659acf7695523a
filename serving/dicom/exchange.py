"""DICOM in and out of the data plane: images from archives, reports and pictures back to them.

A study knows its image by salted UIDs only. A document that is downloaded is written under that pseudonym. One that is
sent to an archive is written under the real patient: whoever sends it names the original, its header is fetched for
this one purpose, and it must be an image that the study came from, which its salted UID proves.

Several DICOM images may have the same pixels, and are one study then. Their identities are kept side by side
(`serving.dicom.sources`), and a document is about one of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import TypeVar

import pydicom

from serving.core.dataplane import DataPlane
from serving.core.intake import Upload
from serving.core.overlays import picture
from serving.core.readings import Readings
from serving.core.recording import document_entry, record
from serving.core.timing import Timing
from serving.dicom import DicomSource, pseudonymous_uid
from serving.dicom.capture import secondary_capture
from serving.dicom.identity import Algorithm
from serving.dicom.nodes import Node, Query
from serving.dicom.report import ClassProbability, Finding, ReaderBox, Reading, Signature, structured_report
from serving.dicom.sources import Numbered, chosen, framed, listed, sources_of
from serving.errors import DicomContextError, InvalidInteractionError, ModelChangedError, NodeError, UnknownNodeError
from serving.interfaces.schemas import InteractionAnswer, InteractionRequest, ReadingAnswer, StudyAnswer
from serving.interfaces.schemas.dicom import (
    DocumentRequest,
    FetchRequest,
    FoundInstance,
    SearchAnswer,
    SendAnswer,
    SendRequest,
    SourcesAnswer,
)
from serving.store.entries import Caller
from serving.store.studies import load_study
from serving.telemetry import Telemetry
from serving.telemetry.metrics import DicomOperation

T = TypeVar("T")
_PSEUDONYM = 63  # characters that a report has for one


@dataclass(frozen=True)
class _Subject:
    """What a document is about: an interaction, its answer and, if that is what it is of, the signed reading."""

    request: InteractionRequest
    answer: InteractionAnswer
    signed: ReadingAnswer | None


class Documents:
    """Thread-safe; every method blocks, see `serving.core.dataplane`.

    Args:
        plane: predicts, and keeps studies.
        readings: knows what was signed.
        nodes: archives by name.
        salt: of pseudonyms.
        telemetry: is told of calls to archives.
    """

    def __init__(
        self, plane: DataPlane, readings: Readings, nodes: Mapping[str, Node], salt: bytes, telemetry: Telemetry
    ) -> None:
        self._plane = plane
        self._readings = readings
        self._nodes = nodes
        self._salt = salt
        self._telemetry = telemetry

    @property
    def nodes(self) -> list[str]:
        """The archives' names."""
        return sorted(self._nodes)

    def search(self, node: str, query: Query, limit: int, offset: int) -> SearchAnswer:
        """Images in an archive.

        Raises:
            UnknownNodeError: the configuration names no such archive.
            InvalidDicomQueryError, NodeError: see `serving.dicom.nodes.Node.search`.
        """
        timing = Timing(self._telemetry)
        archive = self._node(node)
        found = self._timed("search", lambda: archive.search("instances", query, limit, offset))
        timing.lap("read")
        return SearchAnswer(instances=[_found(each) for each in found], timings_ms=timing.milliseconds)

    def fetch(self, request: FetchRequest, caller: Caller) -> StudyAnswer:
        """Adds an image from an archive as a study.

        Raises:
            UnknownNodeError, UnknownInstanceError, NodeError: it cannot be had.
            As `serving.core.dataplane.DataPlane.add_studies`: it cannot be used.
        """
        archive, at = self._node(request.node), request.instance
        data = self._timed("retrieve", lambda: archive.retrieve(at.study_uid, at.series_uid, at.instance_uid))
        return self._plane.add_studies([Upload(data, "the archive's image")], caller)[0]

    def sources(self, digest: str) -> SourcesAnswer:
        """The DICOM images that a study came as.

        Raises:
            UnknownStudyError, AlteredStudyError, StoreError: see `serving.store.studies.load_study`.
        """
        return SourcesAnswer(digest=digest, sources=[listed(each) for each in self._sources(digest)])

    def report(self, digest: str, asked: DocumentRequest, caller: Caller, sees_all: bool = False) -> bytes:
        """A structured report (TID 1500) under the study's pseudonym.

        Args:
            digest, asked: what it is about.
            caller: who asks.
            sees_all: see `serving.core.readings.Readings.readings`.

        Raises:
            NoSourceError, SeveralSourcesError, UnknownSourceError, FrameError: see `serving.dicom.sources`.
            UnknownReadingError: there is no such reading, or it may not be seen.
            ModelChangedError: it was signed under another model than the one that answers now.
            As `serving.core.dataplane.DataPlane.interact`.
        """
        source = chosen(self._sources(digest), asked.source)
        subject = self._subject(digest, asked, source, caller, sees_all)
        return structured_report(source, _reading(subject, caller), _algorithm(subject.answer), _now())

    def capture(
        self, digest: str, concept: str, asked: DocumentRequest, caller: Caller, sees_all: bool = False
    ) -> bytes:
        """A Secondary Capture of a concept's map over the image, under the study's pseudonym.

        Raises:
            UnknownConceptError: no such concept.
            As `report`.
        """
        source = chosen(self._sources(digest), asked.source)
        return self._capture(source, self._subject(digest, asked, source, caller, sees_all), concept)

    def send(self, digest: str, request: SendRequest, caller: Caller, sees_all: bool = False) -> SendAnswer:
        """Files a report and pictures beside the original image, under its patient and study.

        Raises:
            DicomContextError: the study came from other images.
            UnknownNodeError, UnknownInstanceError, NodeError, NodeStoreError: the archive refused.
            As `report` and `capture`.
        """
        timing = Timing(self._telemetry)
        archive = self._node(request.node)
        source = self._of_original(self._sources(digest), request)
        at = request.original
        context = self._timed("retrieve", lambda: archive.header(at.study_uid, at.series_uid, at.instance_uid))
        timing.lap("read")
        subject = self._subject(digest, request, source, caller, sees_all)
        reading, algorithm = _reading(subject, caller), _algorithm(subject.answer)
        files = [structured_report(source, reading, algorithm, _now(), context)]
        files += [self._capture(source, subject, each, context) for each in request.pictures]
        timing.lap("draw")
        self._timed("store", lambda: archive.store(files))
        uids = [str(pydicom.dcmread(io.BytesIO(each), stop_before_pixels=True).SOPInstanceUID) for each in files]
        entry = document_entry(caller, subject.answer, request, source.instance_uid, uids)
        receipt = self._plane.store.ledger.append([entry])[0]
        timing.lap("record")
        return SendAnswer(instance_uids=uids, record=record(receipt), timings_ms=timing.milliseconds)

    def _subject(
        self, digest: str, asked: DocumentRequest | SendRequest, source: DicomSource, caller: Caller, sees_all: bool
    ) -> _Subject:
        """Reasons again, on record as any answer, so that a document of a signed reading has the places, too."""
        signed, given = None, asked.interaction
        if asked.reading is not None:
            if given != InteractionRequest():
                raise InvalidInteractionError("interaction: is what the reading says; name one of the two")
            signed = self._readings.reading(digest, asked.reading, caller.actor, sees_all)
            given = signed.state if signed.decision == "keep" else InteractionRequest(image=signed.state.image)
        request = framed(given, source)
        answer = self._plane.interact(digest, request, caller)
        if signed is not None and signed.model.digest != answer.model.digest:
            raise ModelChangedError(
                f"reading: was signed with version {signed.model.version}, and version {answer.model.version} answers "
                "now; sign it anew"
            )
        return _Subject(request, answer, signed)

    def _capture(
        self, source: DicomSource, subject: _Subject, concept: str, context: pydicom.Dataset | None = None
    ) -> bytes:
        timing = Timing(self._telemetry)
        answer, request = subject.answer, subject.request
        image = self._plane.image(answer.digest, timing)
        overlay = self._plane.overlay(answer.digest, concept, request, timing)
        size = self._plane.size(answer.digest, timing)
        drawn = picture(image, overlay, request.boxes, size)
        unlike = "; image unlike the training images" if answer.after.fits.reasons else ""
        said = f"Similarity to {concept}, {answer.after.top}{unlike}; version {answer.model.version}"
        return secondary_capture(source, drawn, said, _algorithm(answer), _now(), context)

    def _sources(self, digest: str) -> list[Numbered]:
        database = self._plane.store.database
        load_study(database, digest)  # there is one, and it was not altered
        return sources_of(database, digest)

    def _of_original(self, sources: list[Numbered], request: SendRequest) -> DicomSource:
        own = pseudonymous_uid(request.original.instance_uid, self._salt)
        chosen_from = [each for each in sources if each.source.instance_uid == own]
        if sources and not chosen_from:
            raise DicomContextError("original: is not an image that the study came from")
        return chosen(chosen_from, request.source)

    def _node(self, name: str) -> Node:
        if name not in self._nodes:
            raise UnknownNodeError(f"node: {name!r} is none of {', '.join(self.nodes) or 'none'}")
        return self._nodes[name]

    def _timed(self, operation: DicomOperation, call: Callable[[], T]) -> T:
        started = perf_counter()
        try:
            return call()
        except NodeError:
            self._telemetry.metrics.dicom_failed(operation)
            raise
        finally:
            self._telemetry.metrics.dicom(operation, perf_counter() - started)


def _found(instance: pydicom.Dataset) -> FoundInstance:
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "StudyDate")
    study, series, own, modality, date = (str(instance.get(name, "")) for name in names)
    return FoundInstance(study_uid=study, series_uid=series, instance_uid=own, modality=modality, study_date=date)


def _algorithm(answer: InteractionAnswer) -> Algorithm:
    return Algorithm(answer.model.version, answer.model.digest)


def _reading(subject: _Subject, caller: Caller) -> Reading:
    said, signed = subject.answer.after, subject.signed
    reader = caller.actor if signed is None else signed.reader
    return Reading(
        findings=tuple(
            Finding(each.name, each.probability, each.answer, (each.peak.x, each.peak.y) if each.peak else None)
            for each in said.concepts
        ),
        classes=tuple(ClassProbability(each.name, each.probability, each.name in said.found) for each in said.classes),
        boxes=tuple(ReaderBox(**box.model_dump()) for box in subject.request.boxes),
        abstains=said.abstains,
        fit_score=said.fits.score,
        misfits=tuple(each.code for each in said.fits.reasons),
        reader=reader.replace(":", ".")[:_PSEUDONYM],
        signature=None if signed is None else _signature(signed),
    )


def _signature(signed: ReadingAnswer) -> Signature:
    return Signature(signed.decision, signed.comment, signed.record.number, signed.record.hash, signed.at)


def _now() -> datetime:
    return datetime.now().astimezone()
