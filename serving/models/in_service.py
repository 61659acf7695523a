"""The bundles in service: one champion and, if there is one, a challenger.

Concurrency: whoever asks gets a `Model` and keeps it to the end of the request; a model that is replaced meanwhile goes
on answering those, and is closed when the last of them has let go of it. So a roll-out drops nothing.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from csr.bundle.format import Bundle, ConceptReference
from csr.bundle.profile import InputProfile
from csr.bundle.pruning import Pruning
from serving.engines import Engine
from serving.errors import NotReadyError
from serving.interfaces.schemas import ModelRef
from serving.models.absence import absent_levels
from serving.models.atlas import BundleAtlas
from serving.models.explainer import Explainer
from serving.models.temperature import class_probabilities, temperature
from serving.telemetry.drift import ConceptDrift

Role = Literal["champion", "challenger"]
Mode = Literal["shadow", "weighted"]


class Model:
    """One bundle that passed its checks. Immutable, but for ``drift`` and ``fit_drift``, which are fed the studies that
    it predicts.

    Args:
        bundle: verified.
        engine: runs its graphs, and passed the golden case; closed with the model.
        version: in the registry, or what the configuration calls a folder's bundle.
    """

    def __init__(self, bundle: Bundle, engine: Engine, version: str) -> None:
        self.bundle = bundle
        self.digest = bundle.digest
        self.version = version
        self.manifest = bundle.manifest
        self.engine = engine
        self.atlas = BundleAtlas(bundle)
        self.explainer = Explainer(bundle.manifest, self.atlas.entries)
        self.naming = bundle.naming()
        self.profile = bundle.profile()
        self.pruning = Pruning(bundle) if bundle.manifest.format >= 8 else None
        self.drift = ConceptDrift(bundle.reference())
        self.fit_drift = ConceptDrift([_score_reference(self.profile)])
        self.ref = ModelRef(version=version, digest=self.digest)
        weakref.finalize(self, engine.close)

    @property
    def canvas_shape(self) -> tuple[int, int, int]:
        """C×S×S of what it looks at."""
        return (self.manifest.channels, self.manifest.side, self.manifest.side)

    @cached_property
    def absent(self) -> list[float]:
        """What each concept scores in images that lack it (`serving.models.absence`)."""
        return absent_levels(self.engine, self.manifest, self.explainer.alive)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """…×T logits → …×T probabilities, as the reasoner makes them (`serving.models.temperature`)."""
        return class_probabilities(logits, self._temperature, self.manifest.task == "multilabel")

    @cached_property
    def _temperature(self) -> float:
        return temperature(self.engine, self.manifest)


def _score_reference(profile: InputProfile) -> ConceptReference:
    return ConceptReference("fit score", profile.score_edges, profile.score_shares)


@dataclass(frozen=True)
class Challenge:
    """A model on trial.

    Args:
        model: the challenger.
        mode: ``shadow``: it answers beside the champion, for the record only; ``weighted``: it answers instead.
        share: of the studies that are its own if weighted, in [0, 1].
    """

    model: Model
    mode: Mode
    share: float = 0.0


class ServedModels:
    """What is in service now. Thread-safe.

    Args:
        champion: None until one is ready.
        waiting_for: why there is none yet.
    """

    def __init__(self, champion: Model | None = None, waiting_for: str = "no model is loaded yet") -> None:
        self._lock = threading.Lock()
        self._champion = champion
        self._challenge: Challenge | None = None
        self._waiting_for = waiting_for
        self._refused: dict[str, str] = {}

    @property
    def champion(self) -> Model:
        """Raises:
        NotReadyError: there is none yet, and why.
        """
        with self._lock:
            if self._champion is None:
                raise NotReadyError(self._waiting_for)
            return self._champion

    @property
    def challenge(self) -> Challenge | None:
        """The model on trial, if there is one."""
        with self._lock:
            return self._challenge

    def in_service(self) -> list[tuple[Role, Model]]:
        """The models that answer, the champion first."""
        with self._lock:
            found: list[tuple[Role, Model]] = [] if self._champion is None else [("champion", self._champion)]
            return found + ([] if self._challenge is None else [("challenger", self._challenge.model)])

    @property
    def refused(self) -> dict[str, str]:
        """Why models that should be in service are not, by role."""
        with self._lock:
            return dict(self._refused)

    def for_study(self, digest: str) -> Model:
        """The model that answers for a study: the same one at every replica and every time.

        Raises:
            NotReadyError: there is no champion yet.
        """
        champion, challenge = self.champion, self.challenge
        if challenge is not None and challenge.mode == "weighted" and _position(digest) < challenge.share:
            return challenge.model
        return champion

    def crown(self, model: Model) -> None:
        """Puts a champion into service."""
        with self._lock:
            self._champion = model
            self._refused.pop("champion", None)

    def challenge_with(self, challenge: Challenge | None) -> None:
        """Puts a challenger on trial, or ends the trial."""
        with self._lock:
            self._challenge = challenge
            self._refused.pop("challenger", None)

    def refuse(self, role: Role, reason: str) -> None:
        """Notes why a model is not put into service; what is in service stays."""
        with self._lock:
            self._refused[role] = reason
            if self._champion is None and role == "champion":
                self._waiting_for = reason


def _position(digest: str) -> float:
    """Where a study lies in [0, 1): a hash of its own, so that it depends on nothing else that digests decide."""
    return int.from_bytes(hashlib.sha256(f"challenge:{digest}".encode()).digest()[:8], "big") / 2**64
