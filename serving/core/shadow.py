"""A challenger that answers beside the champion, for the record only.

What it would have said goes into the ledger as entries of kind ``shadow``, after the champion's answer has left: it
costs readers nothing but the processor's time. Questions beyond a full queue are dropped and counted: a trial is a
sample, and must never slow down what is in service.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from csr.errors import CSRError
from serving.core.fit import MisfitAction
from serving.core.reasoning import encoded_study, explain
from serving.core.recording import shadow_entry
from serving.core.study_cache import EncodedStudy, StudyCache
from serving.core.timing import Timing
from serving.interfaces.schemas import InteractionRequest, Prediction
from serving.models.in_service import Model, ServedModels
from serving.store.entries import Caller
from serving.store.ledger import Ledger
from serving.telemetry import Telemetry

CACHE_BYTES = 64 << 20
WAITING = 64
_logger = logging.getLogger(__name__)


class Shadow:
    """Thread-safe; works in one thread of its own.

    Args:
        models: the challenger is taken from here, if it is on trial in mode ``shadow``.
        ledger: where its answers go.
        telemetry: is told how often it disagrees, and what was dropped.
        action: what follows if a study does not fit.
        cache_bytes: budget of the studies that it has encoded.
        waiting: questions that may wait; those beyond are dropped and counted.
    """

    def __init__(
        self,
        models: ServedModels,
        ledger: Ledger,
        telemetry: Telemetry,
        action: MisfitAction = "abstain",
        cache_bytes: int = CACHE_BYTES,
        waiting: int = WAITING,
    ) -> None:
        self._telemetry = telemetry
        self._action: MisfitAction = action
        self._models = models
        self._ledger = ledger
        self._studies = StudyCache(cache_bytes)
        self._room = threading.BoundedSemaphore(waiting)
        self._worker = ThreadPoolExecutor(1, "shadow")

    def ask(
        self, study: EncodedStudy, request: InteractionRequest | None, champion: Prediction, caller: Caller
    ) -> None:
        """Lets the challenger answer what the champion has answered; returns at once."""
        challenge = self._models.challenge
        if challenge is None or challenge.mode != "shadow":
            return
        if not self._room.acquire(blocking=False):
            self._telemetry.metrics.challenger_dropped()
            return
        self._worker.submit(self._answer, challenge.model, study, request, champion, caller)

    def close(self) -> None:
        """Answers what waits, then ends."""
        self._worker.shutdown()

    def _answer(
        self,
        model: Model,
        study: EncodedStudy,
        request: InteractionRequest | None,
        champion: Prediction,
        caller: Caller,
    ) -> None:
        try:
            own = self._studies.get(model.digest, study.digest)
            if own is None or own.placement != study.placement:
                own, _ = encoded_study(
                    model,
                    study.digest,
                    study.canvas,
                    study.placement,
                    study.facts,
                    self._action,
                    Timing(self._telemetry),
                )
                self._studies.put(own)
            said = own.prediction
            if request is not None:
                _, said = explain(model, own, request, Timing(self._telemetry))
            asked = {} if request is None else request.model_dump()
            self._ledger.append([shadow_entry(caller, model, study.digest, asked, champion, said)])
            self._telemetry.metrics.challenger_compared(agrees=champion.found == said.found)
        except CSRError as error:  # for example a concept that it does not know
            _logger.warning("the challenger did not answer for a study: %s", error)
        except Exception:
            _logger.exception("the challenger failed")
        finally:
            self._room.release()
