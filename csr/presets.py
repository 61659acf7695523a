"""The two recipes: ``paper``, CSR to the letter, and ``robust``, what makes it point and hold.

A preset fills the keys that ``params.yaml`` leaves null. Everything else (backbone, budget, image size) is common to
both, so that the two can be compared.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["paper", "robust"]

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "concepts.model": {"pooling": "average", "sharpness": 1.0},
        "prototypes": {
            "per_concept": 100,
            "standardise": False,
            "gamma": 1000.0,
            "margin": "minus",
            "absence": 0.0,
            "agreement": 0.0,
            "reseed": False,
        },
        "head": {"clip": False, "floor": "zero", "least_usage": 0.0, "concept_dropout": 0.0},
        "export": {"alpha": 0.2, "rejection": "zero"},
    },
    "robust": {
        "concepts.model": {"pooling": "lse", "sharpness": 5.0},
        "prototypes": {
            "per_concept": 5,
            "standardise": True,
            "gamma": 10.0,
            "margin": "minus",
            "absence": 3.0,
            "agreement": 1.0,
            "reseed": False,
        },
        "head": {"clip": True, "floor": "absent", "least_usage": 0.01, "concept_dropout": 0.0},
        "export": {"alpha": "calibrated", "rejection": "absent"},
    },
}
