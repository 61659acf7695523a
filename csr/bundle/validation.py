"""What a bundle's validation studies say about its prototypes; torch-free, and without any image.

For `csr.bundle.pruning`: whatever is pruned, a study's scores are those of the prototypes that are left, and a
concept's map is the largest of their maps. So the scores of every study, and the maps of every concept that a study has
a box of, answer exactly what a pruned model would say. Those of the features that the pipeline judges the model with.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np

SIMILAR = 5  # nearest other prototypes that are named of each


@dataclass(frozen=True)
class ValidationSet:
    """N validation studies, K concepts, M prototypes each, T classes, h×w cells.

    Args:
        study_ids: N strings.
        truth: N class indices, or N×T of 1, 0 and NaN where a study can have several (`csr.data.records.Collection`).
        labels: N×K of 1, 0 and NaN, which concepts a study shows.
        scores: N×K×M float32, without interaction.
        peaks: N×K×M int32, the cell in which each similarity map is largest, rows of cells from the upper left.
        pairs: P×2 int32, the studies and concepts that have boxes.
        maps: P×M×h×w float32, the similarity maps of those; 0 for pruned prototypes.
        boxes: Q×4 float64 (x_min, y_min, x_max, y_max), pixels of the prepared image.
        box_pairs: Q int32, whose box each is: a row of ``pairs``.
        similar, cosines: K·M×`SIMILAR` int32 and float32, of each prototype the most similar others, k·M + m, the most
            similar first; −1 where there are no more.
    """

    study_ids: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    peaks: np.ndarray
    pairs: np.ndarray
    maps: np.ndarray
    boxes: np.ndarray
    box_pairs: np.ndarray
    similar: np.ndarray
    cosines: np.ndarray

    def __len__(self) -> int:
        return len(self.study_ids)

    def write(self, file: Path) -> None:
        """Writes ``validation.npz``."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, content: bytes) -> ValidationSet:
        """The inverse of `write`, from what the file holds."""
        with np.load(BytesIO(content)) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def boxes_by_pair(self) -> dict[tuple[int, int], np.ndarray]:
        """(study, concept) → n×4 boxes, as `csr.evaluation.pointing.pointing_game` takes them."""
        return {
            (int(study), int(concept)): self.boxes[self.box_pairs == pair]
            for pair, (study, concept) in enumerate(self.pairs)
        }
