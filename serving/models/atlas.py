"""What a bundle has to show: its atlas with the crops, and its samples.

Read whole when the bundle is opened: one that is replaced on disk later must not mix with the one that answers.
"""

from __future__ import annotations

import numpy as np

from csr.bundle.format import AtlasEntry, Bundle
from csr.data.images import to_png
from serving.errors import NoValidationError, UnknownConceptError, UnknownItemError
from serving.interfaces.schemas import Sample


class BundleAtlas:
    """Immutable, so any thread may read it."""

    def __init__(self, bundle: Bundle) -> None:
        self.entries: list[AtlasEntry] = bundle.atlas()
        self.samples: list[Sample] = []
        self._concepts = bundle.manifest.concepts
        self._prototypes = {(entry.concept, entry.index): entry for entry in self.entries}
        shown = ((each.concept, each.index, rank) for each in self.entries for rank in range(len(each.sources)))
        self._rows = {key: row for row, key in enumerate(shown)}
        self._crops = np.array(bundle.crops())
        self._maps = bundle.crop_maps()
        self._files: list[bytes] = []
        for index, row in enumerate(bundle.samples()):
            known = {name: row[name] for name in ("study_id", "diagnosis", "concepts", "boxes")}
            self.samples.append(Sample(index=index, **known))
            self._files.append((bundle.path / "samples" / row["file"]).read_bytes())

    def check_concept(self, name: str) -> None:
        """Raises:
        UnknownConceptError: the model has no such concept.
        """
        if name not in self._concepts:
            raise UnknownConceptError(f"unknown concept {name!r}; this model knows {', '.join(self._concepts)}")

    def check_prototype(self, concept: str, index: int) -> None:
        """Raises:
        UnknownConceptError, UnknownItemError: the model has no such concept, or the concept no such prototype.
        """
        self.check_concept(concept)
        if (concept, index) not in self._prototypes:
            raise UnknownItemError(f"{concept} has no prototype {index}")

    def crop(self, concept: str, index: int, rank: int) -> bytes:
        """What a prototype looks like in one of its sources, as PNG.

        Raises:
            UnknownConceptError, UnknownItemError: no such concept, no such prototype of it, or no such source.
        """
        return to_png(self._crops[self._row(concept, index, rank)])

    def crop_with_map(self, concept: str, index: int, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
        """The crop C×c×c uint8, the prototype's similarity map over it c×c, and the largest similarity of any crop,
        which is one scale for the whole atlas.

        Raises:
            NoValidationError: the bundle has no maps.
            UnknownConceptError, UnknownItemError: see `crop`.
        """
        row = self._row(concept, index, rank)
        if self._maps is None:
            raise NoValidationError("this model was exported without maps over its crops; export the bundle again")
        return self._crops[row], self._maps[row] / 255, float(self._maps.max()) / 255

    def entry(self, concept: str, index: int) -> AtlasEntry:
        """One prototype.

        Raises:
            UnknownConceptError, UnknownItemError: see `check_prototype`.
        """
        self.check_prototype(concept, index)
        return self._prototypes[concept, index]

    @property
    def has_maps(self) -> bool:
        """Whether there are maps over the crops."""
        return self._maps is not None

    def _row(self, concept: str, index: int, rank: int) -> int:
        self.check_prototype(concept, index)
        if (concept, index, rank) not in self._rows:
            raise UnknownItemError(f"prototype {index} of {concept} has no source {rank}; they count from 0")
        return self._rows[concept, index, rank]

    def sample(self, index: int) -> bytes:
        """A sample's PNG.

        Raises:
            UnknownItemError: no such sample.
        """
        if not 0 <= index < len(self._files):
            raise UnknownItemError(f"no sample {index}; this bundle has {len(self._files)}")
        return self._files[index]
