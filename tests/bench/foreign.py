"""Pictures that no radiograph model was trained on: real files that packages of PyPI carry.

pydicom brings small CT, MR and colour images for its own tests, ``pydicom-data`` (of the development dependencies)
whole ones and ultrasound, scikit-learn and matplotlib photographs. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pydicom

_WANTED = ("CT", "MR", "US")
_RADIOGRAPHS = ("CR", "DX", "RG")


@dataclass(frozen=True)
class ForeignFile:
    """A file; ``kind`` is the DICOM modality, ``colour`` or ``other``."""

    name: str
    kind: str
    data: bytes


def foreign_files() -> list[ForeignFile]:
    """Every DICOM image and photograph there is, by name; radiographs, which may be right, are left out."""
    found = [_dicom(path) for folder in _dicom_folders() for path in sorted(folder.glob("*.dcm"))]
    photographs = [*_folder("sklearn", "datasets/images").glob("*.jpg"), *_matplotlib().glob("*.jpg")]
    found += [ForeignFile(path.name, "colour", path.read_bytes()) for path in sorted(photographs)]
    return [each for each in found if each is not None]


def _dicom_folders() -> list[Path]:
    folders = [_folder("pydicom", "data/test_files")]
    if importlib.util.find_spec("data_store") is not None:
        folders.append(_folder("data_store", "data"))
    return folders


def _folder(package: str, inside: str) -> Path:
    return Path(str(files(package))) / inside


def _matplotlib() -> Path:
    return _folder("matplotlib", "mpl-data/sample_data")


def _dicom(path: Path) -> ForeignFile | None:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        whole = "PixelData" in pydicom.dcmread(path, force=True)
    except Exception:  # damaged on purpose: nobody would take it for a picture
        return None
    modality = str(header.get("Modality", "OT"))
    if not whole or modality in _RADIOGRAPHS or modality.startswith("RT"):
        return None
    colour = int(header.get("SamplesPerPixel", 1) or 1) == 3
    kind = modality if modality in _WANTED else "colour" if colour else "other"
    return ForeignFile(path.name, kind, path.read_bytes())
