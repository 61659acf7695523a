"""Scores of an image-text encoder that is simulated, to study what one of a given quality is worth.

The scores of studies with and without a concept are normal, of one variance (the binormal model of Green & Swets 1966,
*Signal Detection Theory and Psychophysics*, chapter 3), d' apart, which makes

    AUROC = Φ(d' / √2)

Mistakes of different concepts and studies are independent, which those of a real encoder are not: look-alikes fool it
together.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from csr.data.records import Collection
from csr.errors import ConfigError


def simulated_scores(collection: Collection, auroc: float, seed: int) -> np.ndarray:
    """n×K scores of the n studies of split ``train``, for `csr.data.text_concepts.labels.fill_labels`.

    Args:
        collection: with every concept label of that split.
        auroc: of the scores of each concept, in [0.5, 1).

    Raises:
        ConfigError: the AUROC is outside that range, or a label is not known.
    """
    if not 0.5 <= auroc < 1:
        raise ConfigError(f"AUROC of a simulated encoder: {auroc} is outside 0.5..1")
    labels = collection.concept_labels()[collection.rows("train")]
    if np.isnan(labels).any():
        raise ConfigError(f"{collection.name}: a simulated encoder needs the truth; some concept labels are unknown")
    distance = np.sqrt(2) * norm.ppf(auroc)
    return distance * labels + np.random.default_rng([seed, 5]).standard_normal(labels.shape)
