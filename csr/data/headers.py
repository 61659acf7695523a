"""What image files say of themselves in their headers: the terms that a collection's images have.

A table of studies may have the columns ``modality, body_part, view, photometric`` in DICOM's terms. Of the phantom and
of published sets that have no such columns it is known what their images are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

HEADER_COLUMNS = ("modality", "body_part", "view", "photometric")
_RADIOGRAPHS = {
    "modality": ("CR", "DX"),
    "body_part": ("CHEST",),
    "view": ("AP", "PA"),
    "photometric": ("MONOCHROME1", "MONOCHROME2"),
}
_PHOTOGRAPHS = {"photometric": ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")}
_KNOWN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "phantom": _RADIOGRAPHS,
    "tbx11k": _RADIOGRAPHS,
    "vindr_cxr": _RADIOGRAPHS,
    "isic2017": _PHOTOGRAPHS,
    "isic2018": _PHOTOGRAPHS,
}


def collection_headers(name: str) -> dict[str, tuple[str, ...]]:
    """The terms that are known of a collection by its name; none of one's own."""
    return dict(_KNOWN.get(name, {}))


def table_headers(studies: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """The terms that a table of studies names, by column; a column that is missing or empty names none."""
    found = {}
    for name in HEADER_COLUMNS:
        if name in studies and (terms := sorted({str(term).strip() for term in studies[name].dropna()} - {""})):
            found[name] = tuple(terms)
    return found
