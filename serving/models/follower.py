"""Follows what should be in service: an alias of the model registry, or a bundle's folder.

A new bundle is fetched, its digests are verified, its engine passes the golden case; only then does it take over, and
every change goes on record. Whatever fails leaves what is in service as it is, and says why. Each replica follows by
itself, so there is nobody to miss a change; they agree within ``poll_s`` seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from csr.bundle.format import Bundle
from csr.errors import BundleError, CSRError
from serving.engines import Engine
from serving.errors import ServingError
from serving.models.changes import change_entry
from serving.models.in_service import Challenge, Mode, Model, Role, ServedModels
from serving.models.sources import Source, Target, first_line
from serving.store import Store
from serving.telemetry import Telemetry

_AGAIN_S = 30.0  # before a target that failed is tried again
_logger = logging.getLogger(__name__)
MakeEngine = Callable[[Bundle, str], Engine]


class Follower:
    """Keeps one role filled.

    Args:
        role: which.
        source: of bundles.
        make_engine: from a verified bundle and its version; raises `CSRError` if the golden case does not come out.
        models: what is in service.
        store: for the record.
        telemetry: is told of changes and refusals.
        trial: mode and share, if the role is the challenger's.
    """

    def __init__(
        self,
        role: Role,
        source: Source,
        make_engine: MakeEngine,
        models: ServedModels,
        store: Store,
        telemetry: Telemetry,
        trial: tuple[Mode, float] = ("shadow", 0.0),
    ) -> None:
        self._role = role
        self._source = source
        self._make_engine = make_engine
        self._models = models
        self._store = store
        self._metrics = telemetry.metrics
        self._trial = trial
        self._served: str | None = None
        self._failed: tuple[str, float] = ("", 0.0)

    def refresh(self) -> None:
        """Looks once, and does what is needed. Raises nothing: what fails is noted in `ServedModels.refused`."""
        try:
            target = self._source.target()
            if target is None:
                self._vacate()
            elif target.mark != self._served and not self._waits(target):
                self._install(target)
        except CSRError as error:
            self._refuse(error.told if isinstance(error, ServingError) else str(error))
            _logger.error("%s: %s", self._role, error)
        except Exception as error:
            self._refuse(f"it failed to load ({first_line(error)})")
            _logger.exception("%s: failed to load", self._role)

    def _refuse(self, reason: str) -> None:
        self._models.refuse(self._role, reason)
        self._metrics.rollout_refused()

    def _waits(self, target: Target) -> bool:
        mark, until = self._failed
        return mark == target.mark and time.monotonic() < until

    def _install(self, target: Target) -> None:
        self._failed = (target.mark, time.monotonic() + _AGAIN_S)
        bundle = self._source.open(target)
        if self._role == "challenger" and not self._comparable(bundle):
            raise BundleError(f"version {target.version}: a challenger must look at images of the champion's size")
        model = Model(bundle, self._make_engine(bundle, target.version), target.version)
        self._record(model.digest, model.version)
        if self._role == "champion":
            self._models.crown(model)
        else:
            self._models.challenge_with(Challenge(model, *self._trial))
        self._metrics.model_served(self._role, model.version, model.digest)
        self._metrics.rolled_out()
        self._served = target.mark
        self._failed = ("", 0.0)
        _logger.info("%s: version %s, bundle %s, is in service", self._role, model.version, model.digest[:12])

    def _comparable(self, bundle: Bundle) -> bool:
        champion = self._models.champion.manifest
        return (champion.channels, champion.side) == (bundle.manifest.channels, bundle.manifest.side)

    def _vacate(self) -> None:
        if self._role == "champion":
            self._models.refuse("champion", "the registry's alias points at nothing yet; promote a version")
        elif self._served is not None:
            self._record("", "")
            self._models.challenge_with(None)
            self._metrics.model_withdrawn("challenger")
            self._served = None

    def _record(self, digest: str, version: str) -> None:
        """Appends the change, unless another replica already has."""
        last, number = "", 0
        for row in self._store.ledger.entries("model"):
            if row["body"]["request"]["role"] == self._role:
                last, number = row["bundle"], row["number"]
        if last != digest:
            self._store.ledger.append([change_entry(self._role, digest, version, last, number)])


class Watch:
    """Refreshes followers every so often, in a thread of its own, until it is closed."""

    def __init__(self, followers: list[Follower], every_s: float) -> None:
        self._followers = followers
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)

    def start(self) -> None:
        """Looks once, then goes on in the background."""
        self._look()
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        for follower in self._followers:
            follower.refresh()
