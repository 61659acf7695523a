"""What is in this box? Concepts ranked by the evidence inside a box, and doubt in a box that was named. Torch-free.

A box says where and not what. Its features are, of each concept, the largest value of its map inside the box, and the
logarithms of the box's width and height as shares of the image's: findings differ in size as in looks. A multinomial
logistic regression of validation boxes on these gives each concept's probability (`csr.interaction.naming_fit`).

A name is doubted where its probability is below ``doubt``, the value that a share of the rightly named validation
boxes lie below: another concept dominates the evidence inside, as in GRAPE (arXiv 2606.30901).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from csr.interaction.corrections import RegionBox, cells_inside


@dataclass(frozen=True)
class BoxNaming:
    """The regression. F = K + 2 features.

    Args:
        mean, scale: F; what is taken away from the features, and what they are divided by then.
        weights, bias: K×F and K.
        doubt: a name whose probability is below it is questioned.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    doubt: float

    def probabilities(self, concept_maps: np.ndarray, box: RegionBox, side: int) -> np.ndarray:
        """How likely the box is about each concept: K, with sum 1.

        Args:
            concept_maps: K×h×w, without interaction.
            box: in pixels of the side×side input; its kind and concept do not matter.
        """
        return self.by_features(box_features(concept_maps, box, side))

    def by_features(self, features: np.ndarray) -> np.ndarray:
        """…×F of `box_features` → …×K with sum 1."""
        logits = ((features - self.mean) / self.scale) @ self.weights.T + self.bias
        likely = np.exp(logits - logits.max(-1, keepdims=True))
        return likely / likely.sum(-1, keepdims=True)

    def doubts(self, concept: int, probabilities: np.ndarray) -> bool:
        """Whether a name is questioned; never that of a concept without validation boxes, of which nothing is known."""
        return bool(self.weights[concept].any() and probabilities[concept] < self.doubt)

    def to_json(self) -> dict[str, Any]:
        """Plain types from which `from_json` makes the same."""
        return {name: np.asarray(value).tolist() for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BoxNaming:
        """The inverse of `to_json`.

        Raises:
            KeyError: a part is missing.
        """
        arrays = {name: np.asarray(content[name], np.float64) for name in ("mean", "scale", "weights", "bias")}
        return cls(**arrays, doubt=float(content["doubt"]))


def box_features(concept_maps: np.ndarray, box: RegionBox, side: int) -> np.ndarray:
    """K+2 numbers; see the module's docstring. K×h×w maps."""
    cells = cells_inside(RegionBox(box.x_min, box.y_min, box.x_max, box.y_max), side, *concept_maps.shape[-2:])
    size = np.log([(box.x_max - box.x_min) / side, (box.y_max - box.y_min) / side])
    return np.concatenate([concept_maps[:, cells].max(1), size])
