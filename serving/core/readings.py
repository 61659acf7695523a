"""Readings: what waits for a reader, what they sign, and how several readers of one study agree.

A reading is signed under the model that answers when it is put on record, which reasons again: what the ledger holds is
the server's number and not the page's. Everything is derived from the ledger, so any replica can answer, and of two
readings of one reader the later one counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from serving.core.dataplane import DataPlane
from serving.core.recording import reading_entry, readings, record, skip_entry
from serving.core.reviews import named_reviews
from serving.core.timing import Timing
from serving.errors import AlreadySignedError, ModelChangedError, UnknownReadingError
from serving.interfaces.schemas import (
    MOST_SKIPPED,
    Agreement,
    AgreementVerdict,
    ConceptAgreement,
    FeedbackCount,
    ModelRef,
    ReadingAnswer,
    ReadingRequest,
    ReadingsAnswer,
    SkipAnswer,
    SkipRequest,
    WorklistAnswer,
    WorklistItem,
)
from serving.store import Store
from serving.store.entries import Caller, Entry
from serving.store.studies import load_study, require_study
from serving.store.worklist import WorklistQuery, WorklistRow, worklist
from serving.telemetry import Telemetry


class Readings:
    """Thread-safe; every method blocks, see `serving.core.dataplane`.

    Args:
        plane: reasons.
        store: where studies and the ledger are kept.
        telemetry: is told how long it takes.
    """

    def __init__(self, plane: DataPlane, store: Store, telemetry: Telemetry) -> None:
        self._plane = plane
        self._store = store
        self._telemetry = telemetry

    def sign(self, digest: str, request: ReadingRequest, caller: Caller) -> ReadingAnswer:
        """Puts a reading on record. A repetition is answered with what was recorded, whatever answers now.

        Raises:
            ModelChangedError: the reader saw what another model says.
            AlteredStudyError: the store does not hold the study that was added.
            As `serving.core.dataplane.DataPlane.interact`.
        """
        repeated = self._store.ledger.repeated(Entry("reading", caller, "", {"request": request.model_dump()}, digest))
        if repeated is not None:
            return self._signed(digest, repeated.number)
        timing = Timing(self._telemetry)
        load_study(self._store.database, digest)  # nobody signs pixels that are not those which were added
        timing.lap("load")
        model, before, after = self._plane.corrected(digest, request.state, timing)
        if request.model not in (None, model.digest):
            raise ModelChangedError(
                f"model: these are not the numbers of what answers now, which is version {model.version}; read the "
                "study again, and sign that"
            )
        entry = reading_entry(caller, model, digest, request, before, after, timing)
        return self._signed(digest, self._plane.put_on_record([entry], timing)[0].number)

    def readings(self, digest: str, reader: str, sees_all: bool) -> ReadingsAnswer:
        """The last reading of each reader, as far as this one may see them.

        Args:
            digest: the study's address.
            reader: the actor who asks.
            sees_all: they need not have signed.

        Raises:
            UnknownStudyError: no study of this digest was added.
            StoreError: the store does not answer.
        """
        timing = Timing(self._telemetry)
        require_study(self._store.database, digest)
        last = list(_last_of_each(readings(self._store.ledger, [digest])))
        seen = last if sees_all else _visible(last, reader)
        timing.lap("read")
        return ReadingsAnswer(
            digest=digest,
            readings=seen,
            hidden=len(last) - len(seen),
            agreement=agreement(last, hidden=len(seen) < len(last)),
            timings_ms=timing.milliseconds,
        )

    def reading(self, digest: str, number: int, reader: str, sees_all: bool) -> ReadingAnswer:
        """One reading, by the number of its entry.

        Raises:
            UnknownReadingError: the study has no such reading, or this reader may not see it.
            UnknownStudyError, StoreError: see `readings`.
        """
        for each in self.readings(digest, reader, sees_all).readings:
            if each.record.number == number:
                return each
        raise UnknownReadingError(
            f"reading: {number} is not a reading of this study that counts and that you may see; sign your own first"
        )

    def skip(self, digest: str, request: SkipRequest, caller: Caller) -> SkipAnswer:
        """Puts on record that a reader does not read a study.

        Raises:
            AlreadySignedError: they have signed it.
            UnknownStudyError: no study of this digest was added.
            StoreError: it is not on record.
        """
        timing = Timing(self._telemetry)
        require_study(self._store.database, digest)
        if any(each.reader == caller.actor for each in readings(self._store.ledger, [digest])):
            raise AlreadySignedError(
                "you have signed this study, so there is nothing left to skip; sign it anew instead"
            )
        timing.lap("read")
        receipt = self._plane.put_on_record([skip_entry(caller, digest, request)], timing)[0]
        row = next(self._store.ledger.entries("skip", [digest], after=receipt.number - 1))
        return SkipAnswer(
            digest=digest, reader=caller.actor, at=row["at"], reason=request.reason, record=record(receipt)
        )

    def feedback(self, after: int) -> FeedbackCount:
        """How much was signed and reviewed since an entry.

        Raises:
            StoreError: the store does not answer, or an entry cannot be read.
        """
        ledger = self._store.ledger
        through = ledger.head().number
        signed = {(row["study"], row["actor"]) for row in ledger.entries("reading", after=after, until=through)}
        reviewed = {
            (row["bundle"], row["actor"], each.concept, each.index)
            for row in ledger.entries("review", after=after, until=through)
            for each in named_reviews(row)
        }
        return FeedbackCount(after=after, through=through, readings=len(signed), reviews=len(reviewed))

    def worklist(self, query: WorklistQuery, reader: str, sees_all: bool) -> WorklistAnswer:
        """A page of the studies.

        Raises:
            InvalidCursorError: ``after`` is not where a page of this order ended.
            StoreError: the store does not answer.
        """
        timing = Timing(self._telemetry)
        page = worklist(self._store.database, query, reader)
        of_study: dict[str, list[ReadingAnswer]] = defaultdict(list)
        for each in readings(self._store.ledger, [row.assessment.study for row in page.rows]):
            of_study[each.digest].append(each)
        items = [_item(row, list(_last_of_each(of_study[row.assessment.study])), reader, sees_all) for row in page.rows]
        timing.lap("read")
        end = query.offset + len(items)
        return WorklistAnswer(
            items=items,
            next_after=page.after,
            next_offset=end if page.after is not None and query.after is None and end <= MOST_SKIPPED else None,
            total=page.total,
            total_exact=page.exact,
            timings_ms=timing.milliseconds,
        )

    def _signed(self, digest: str, number: int) -> ReadingAnswer:
        """As it is on record."""
        return next(each for each in readings(self._store.ledger, [digest]) if each.record.number == number)


def agreement(last: Collection[ReadingAnswer], hidden: bool = False) -> Agreement:
    """What readers agree on.

    Args:
        last: of each reader the last reading.
        hidden: whoever asks must not know what the others said.
    """
    counts: dict[str, list[int]] = {}
    for each in () if hidden else last:
        if each.decision == "keep":
            confirmed = {*each.state.confirmed, *(box.concept for box in each.state.boxes if box.concept is not None)}
            for names, place in ((confirmed, 0), (set(each.state.rejected), 1)):
                for name in sorted(names):
                    counts.setdefault(name, [0, 0])[place] += 1
    concepts = [ConceptAgreement(name=name, confirmed=yes, rejected=no) for name, (yes, no) in sorted(counts.items())]
    return Agreement(readers=len(last), verdict=_verdict(last, hidden), concepts=concepts)


def _verdict(last: Collection[ReadingAnswer], hidden: bool) -> AgreementVerdict:
    if len(last) < 2:
        return "one" if last else "none"
    if hidden:
        return "hidden"
    return "same" if len({frozenset(each.found) for each in last}) == 1 else "differ"


def _last_of_each(given: Iterable[ReadingAnswer]) -> Iterable[ReadingAnswer]:
    """Readings, oldest first → of each reader the last one, in the same order."""
    last = {each.reader: each for each in given}
    return sorted(last.values(), key=lambda each: each.record.number)


def _visible(last: list[ReadingAnswer], reader: str) -> list[ReadingAnswer]:
    return last if any(each.reader == reader for each in last) else []


def _item(row: WorklistRow, last: list[ReadingAnswer], reader: str, sees_all: bool) -> WorklistItem:
    said = row.assessment
    return WorklistItem(
        digest=said.study,
        model=ModelRef(version=said.version, digest=said.bundle),
        added_at=row.added_at,
        top=said.top,
        confidence=said.confidence,
        found=None if said.found is None else list(said.found),
        margin=said.margin,
        expected_effect=said.expected_effect,
        asks_for_help=said.asks_for_help,
        abstains=said.abstains,
        fits=said.fits,
        assessed_at=row.assessed_at,
        interactions=row.interactions,
        last_interaction_at=row.last_interaction_at,
        mine=row.mine,
        readers=len(last),
        agreement=_verdict(last, hidden=not sees_all and not _visible(last, reader)),
    )
