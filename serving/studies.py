"""Encoded studies, kept in memory up to a budget of bytes; the least recently used leave first.

Thread-safe. A study is immutable, so what `get` returned stays valid after it has left the cache.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from csr.images import Placement
from serving.schemas import Prediction


@dataclass(frozen=True)
class Study:
    """An encoded study.

    Args:
        digest: its address, `csr.images.pixel_digest` of the canvas.
        canvas: C×S×S uint8, what the network saw.
        placement: where the uploaded image lies on it.
        patches: 1×D'×h×w float32, all that reasoning needs.
        prediction: without interaction.
    """

    digest: str
    canvas: np.ndarray
    placement: Placement
    patches: np.ndarray
    prediction: Prediction

    @property
    def nbytes(self) -> int:
        """What it weighs in the budget: its arrays, beside which the rest is small."""
        return self.canvas.nbytes + self.patches.nbytes + self.prediction.maps.nbytes


class StudyCache:
    """Args:
    budget: bytes. The newest study is kept even if it alone is over the budget: a server that forgets a study
        before it can be asked about would be of no use.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._studies: OrderedDict[str, Study] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._studies)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, digest: str) -> Study | None:
        """The study, which now counts as the most recently used, or None."""
        with self._lock:
            study = self._studies.get(digest)
            if study is not None:
                self._studies.move_to_end(digest)
            return study

    def put(self, study: Study) -> None:
        """Keeps a study, in place of one of the same digest, and lets the oldest go until the budget holds."""
        with self._lock:
            replaced = self._studies.pop(study.digest, None)
            self._studies[study.digest] = study
            self._bytes += study.nbytes - (replaced.nbytes if replaced else 0)
            while self._bytes > self.budget and len(self._studies) > 1:
                _, oldest = self._studies.popitem(last=False)
                self._bytes -= oldest.nbytes
