"""The report of what prototypes are for: whose scores and prototypes are told apart, and how."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipelines.comparison import claims_report


def test_names_of_concepts_may_hold_slashes() -> None:
    """VinDr-CXR has a "Nodule/Mass"."""
    keys = ("full/nodule/mass", "csr/nodule/mass/10/0", "csr/nodule/mass/10/1", "csr/cavity/5/0", "probe/cavity/10/0")
    content = {key: np.zeros(3) for key in keys}
    assert claims_report._tried(content, 10) == [("nodule/mass", "0"), ("nodule/mass", "1")]
    assert claims_report._tried(content, 5) == [("cavity", "0")]


def test_prototypes_of_two_seeds_are_two() -> None:
    """Those of a concept are numbered anew with every seed."""
    line = {"concept": "mass", "prototype": 0, "before": 0.1, "similarity_before": 0.0}
    line |= {"similarity_exemplar": 0.5, "similarity_control": 0.1}
    rows = [
        line | {"seed": seed, "patient": patient, "exemplar": 0.5 * seed + 0.3, "control": 0.1 * patient}
        for seed in (0, 1)
        for patient in (0, 1, 2)
    ]
    section = claims_report._exemplar_section(pd.DataFrame(rows), "Run: seeds 0, 1.")
    assert "prototypes (2 of them" in " ".join(section.paragraphs)
