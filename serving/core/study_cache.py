"""Encoded studies, kept in memory up to a budget of bytes; the least recently used leave first.

Thread-safe. A study is immutable, so what `StudyCache.get` returned stays valid after it has left the cache.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from csr.bundle.profile import FileFacts
from csr.data.images import Placement
from serving.interfaces.schemas import Prediction


@dataclass(frozen=True)
class EncodedStudy:
    """A study as one model sees it.

    Args:
        digest: its address, `csr.data.images.pixel_digest` of the canvas.
        bundle: the digest of the model's that encoded it.
        canvas: C×S×S uint8, what the network saw.
        placement: where the uploaded image lies on it.
        facts: what the files that it came as said of themselves.
        patches: 1×D'×h×w float32, all that reasoning needs.
        fit_scores: R float32, how unlike the training images it is.
        maps: K×h×w float32, the concepts' similarity maps without interaction.
        prediction: without interaction.
    """

    digest: str
    bundle: str
    canvas: np.ndarray
    placement: Placement
    facts: tuple[FileFacts, ...]
    patches: np.ndarray
    fit_scores: np.ndarray
    maps: np.ndarray
    prediction: Prediction

    @property
    def nbytes(self) -> int:
        """What it weighs in the budget: its arrays, beside which the rest is small."""
        return self.canvas.nbytes + self.patches.nbytes + self.maps.nbytes


Key = tuple[str, str]


class StudyCache:
    """Studies by digests of bundle and pixels.

    Args:
        budget: bytes. The newest study is kept even if it alone is over the budget: a server that forgets a study
            before it can be asked about would be of no use.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._studies: OrderedDict[Key, EncodedStudy] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._studies)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, bundle: str, digest: str) -> EncodedStudy | None:
        """The study, which now counts as the most recently used, or None."""
        with self._lock:
            study = self._studies.get((bundle, digest))
            if study is not None:
                self._studies.move_to_end((bundle, digest))
            return study

    def put(self, study: EncodedStudy) -> None:
        """Keeps a study, in place of one of the same digests, and lets the oldest go until the budget holds."""
        key = study.bundle, study.digest
        with self._lock:
            replaced = self._studies.pop(key, None)
            self._studies[key] = study
            self._bytes += study.nbytes - (replaced.nbytes if replaced else 0)
            while self._bytes > self.budget and len(self._studies) > 1:
                _, oldest = self._studies.popitem(last=False)
                self._bytes -= oldest.nbytes
