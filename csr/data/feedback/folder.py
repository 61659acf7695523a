"""A feedback set on disk: written whole or not at all, and read only if it is what was written."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from csr.data.atomic_folder import atomic_folder
from csr.data.digests import file_digest
from csr.data.feedback.consensus import RULE, resolve
from csr.data.feedback.rows import LABELS, READINGS, REVIEWS, Label, PrototypeReview, Reading, Row, from_table, to_table
from csr.data.images import pixel_digest, to_png
from csr.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
Said = TypeVar("Said", Reading, Label)
AGAIN = "get it whole (dvc checkout, or csr feedback export), or set data.feedback to null"


@dataclass(frozen=True)
class FeedbackSet:
    """A feedback set that was checked.

    Args:
        path: the folder.
        version: the first 16 digits of a SHA-256 of all that it holds.
        readings: sorted by study and number.
        labels: what they come to, sorted by study, kind and name.
        reviews: in the order of their numbers.
        left_out: what the ledger has and the set has not, by reason.
    """

    path: Path
    version: str
    readings: tuple[Reading, ...]
    labels: tuple[Label, ...]
    reviews: tuple[PrototypeReview, ...]
    left_out: Mapping[str, int]

    @classmethod
    def open(cls, path: Path) -> FeedbackSet:
        """Reads a set and checks all of it: digests, schemas, values, pixels, and that labels follow from readings.

        Raises:
            DataError: it is missing, of another format, incomplete or altered.
        """
        manifest = _manifest(path)
        _check_files(path, manifest["files"])
        if manifest["version"] != _version(manifest["files"]):
            raise DataError(f"{path / MANIFEST}: the version is not that of the files; {AGAIN}")
        readings = _read(path, "readings.parquet", READINGS, Reading)
        labels = _read(path, "labels.parquet", LABELS, Label)
        if manifest["rule"] != RULE or labels != resolve(readings):
            raise DataError(
                f"{path / 'labels.parquet'}: are not what the readings come to by the rule of this version of csr "
                f"({RULE}); export the set again"
            )
        if len({(each.study, each.reader) for each in readings}) < len(readings):
            raise DataError(f"{path / 'readings.parquet'}: a reader has two readings of one study; {AGAIN}")
        reviews = _read(path, "reviews.parquet", REVIEWS, PrototypeReview)
        found = cls(path, manifest["version"], tuple(readings), tuple(labels), tuple(reviews), manifest["left_out"])
        named, there = {f"{study}.png" for study in found.studies}, {file.name for file in (path / "images").glob("*")}
        if wrong := sorted(named ^ there):
            raise DataError(f"{path / 'images' / wrong[0]}: images and readings are not of the same studies; {AGAIN}")
        for study, own in found.readings_by_study().items():
            _check_boxes(path, own, found.canvas(study))
        return found

    @property
    def studies(self) -> tuple[str, ...]:
        """Digests of the studies, sorted."""
        return tuple(sorted({each.study for each in self.readings}))

    def readings_by_study(self) -> dict[str, list[Reading]]:
        """The readings of each study, sorted."""
        return _by_study(self.readings)

    def labels_by_study(self) -> dict[str, list[Label]]:
        """The labels of each study, sorted."""
        return _by_study(self.labels)

    def canvas(self, study: str) -> np.ndarray:
        """C×S×S uint8, as the network saw the study.

        Raises:
            DataError: the image is missing, damaged or another's.
        """
        file = self.path / "images" / f"{study}.png"
        try:
            pixels = np.asarray(Image.open(io.BytesIO(file.read_bytes()), formats=("PNG",)))
        except (OSError, ValueError, SyntaxError):
            raise DataError(f"{file}: cannot be read; {AGAIN}") from None
        canvas = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        if pixel_digest(canvas) != study:
            raise DataError(f"{file}: its pixels have another digest; {AGAIN}")
        return canvas


def write_feedback(
    path: Path,
    readings: Sequence[Reading],
    reviews: Sequence[PrototypeReview],
    canvas: Callable[[str], np.ndarray],
    through: tuple[int, str],
    left_out: Mapping[str, int],
) -> FeedbackSet:
    """Writes a set in place of the one at ``path``; the order of what is given does not matter.

    Args:
        path: a folder that is not there, is empty, or holds a feedback set.
        readings: one of each study and reader.
        reviews: one of each prototype.
        canvas: a study's digest → its C×S×S uint8 pixels.
        through: number and hash of the ledger's last entry that is in it; (0, "") where none is.
        left_out: counts by reason.

    Raises:
        DataError: the folder holds something else.
        What ``canvas`` raises.
    """
    if path.exists() and not (path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))):
        raise DataError(f"{path}: is there and holds no feedback set; name a new folder, or one that csr wrote")
    ordered = sorted(readings, key=lambda each: (each.study, each.number))
    labels = resolve(ordered)
    tables: dict[str, tuple[Sequence[Any], pa.Schema]] = {
        "readings.parquet": (ordered, READINGS),
        "labels.parquet": (labels, LABELS),
        "reviews.parquet": (sorted(reviews, key=lambda each: (each.number, each.concept, each.index)), REVIEWS),
    }
    studies = sorted({each.study for each in ordered})
    with atomic_folder(path) as draft:
        (draft / "images").mkdir()
        for study in studies:
            (draft / "images" / f"{study}.png").write_bytes(to_png(canvas(study)))
        for name, (rows, schema) in tables.items():
            pq.write_table(to_table(rows, schema), draft / name, compression="zstd")
        files = _digests(draft)
        manifest = {
            "format": FORMAT,
            "version": _version(files),
            "rule": RULE,
            "ledger": {"number": through[0], "hash": through[1]},
            "studies": len(studies),
            "readers": len({each.reader for each in ordered}),
            "readings": len(ordered),
            "ties": sum(label.present is None for label in labels),
            "reviews": len(reviews),
            "left_out": dict(sorted(left_out.items())),
            "files": files,
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return FeedbackSet.open(path)


def _by_study(rows: Iterable[Said]) -> dict[str, list[Said]]:
    found: dict[str, list[Said]] = defaultdict(list)
    for row in rows:
        found[row.study].append(row)
    return dict(found)


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise DataError(f"{path}: is no feedback set, {MANIFEST} is missing; {AGAIN}")
    try:
        manifest = json.loads(file.read_bytes())
        known = {"format": int, "version": str, "rule": str, "files": dict, "left_out": dict}
        sound = isinstance(manifest, dict) and all(isinstance(manifest.get(key), known[key]) for key in known)
    except ValueError:
        sound = False
    if not sound:
        raise DataError(f"{file}: is not the manifest of a feedback set; {AGAIN}")
    if manifest["format"] != FORMAT:
        raise DataError(f"{file}: has format {manifest['format']}, this version of csr reads {FORMAT}; export it again")
    return manifest


def _check_files(path: Path, known: Mapping[str, str]) -> None:
    there = _digests(path)
    for name in sorted({*there, *known}):
        if name not in there:
            raise DataError(f"{path / name}: is missing; {AGAIN}")
        if name not in known:
            raise DataError(f"{path / name}: does not belong to the feedback set; remove it")
        if there[name] != known[name]:
            raise DataError(f"{path / name}: was changed after the export, its digest is another; {AGAIN}")


def _digests(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if file.is_file() and file != path / MANIFEST)
    return {name: file_digest(path / name) for name in sorted(file.relative_to(path).as_posix() for file in files)}


def _version(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sorted(files.items()))).encode()).hexdigest()[:16]


def _read(path: Path, name: str, schema: pa.Schema, kind: type[Row]) -> list[Row]:
    file = path / name
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read ({str(error).splitlines()[0]}); {AGAIN}") from None
    if not table.schema.equals(schema):
        raise DataError(f"{file}: its columns are not those of a feedback set of format {FORMAT}; export it again")
    try:
        return from_table(table, kind)
    except ValueError as error:
        raise DataError(f"{file} {error}; {AGAIN}") from None


def _check_boxes(path: Path, readings: Sequence[Reading], canvas: np.ndarray) -> None:
    side = canvas.shape[-1]
    for reading in readings:
        for box in reading.boxes:
            if min(box.x_min, box.y_min) < -1e-6 * side or max(box.x_max, box.y_max) > side * (1 + 1e-6):
                where = f"{path / 'readings.parquet'}: study {reading.study[:12]}"
                raise DataError(f"{where}: a box reaches beyond the image of {side} pixels a side; {AGAIN}")
