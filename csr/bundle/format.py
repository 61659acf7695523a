"""The bundle: the only thing that passes from training to serving. Torch-free to read.

A folder:

- ``encoder.onnx``    image uint8 B×C×S×S → patches float32 B×D'×h×w (normalisation, backbone and projector inside), and
  fit_scores float32 B×R, how unlike the training images it is (`csr.network.guard`)
- ``reasoner.onnx``   patches, importance B×h×w, answers B×K, places B×K×h×w, absent_weight B → the outputs of
  `csr.network.reasoner.Reasoning`
- ``atlas.json``, ``crops.npy``   what each prototype looks like (`csr.bundle.atlas`); crops uint8 S×C×c×c, one a source
- ``crop_maps.npy``   uint8 S×c×c, over each crop the prototype's similarity map there, in steps of 1/255; clipped at 0
- ``pruning.onnx``    scores B×K×M, mask of live prototypes K×M → the standardised scores and the class probabilities
- ``validation.npz``  what the validation studies say about the prototypes (`csr.bundle.validation`)
- ``naming.json``     what a box is about (`csr.interaction.naming`); null if no validation boxes could tell
- ``profile.json``    what the training images were, to tell what does not fit (`csr.bundle.profile`)
- ``reference.json``  how probable each concept was on the training images, to measure drift against
- ``golden.npz``      an input, an interaction and the expected outputs: a server that fails it must not say ready
- ``samples/``        a few test images as PNG with ``samples.json``, to try the page with
- ``manifest.json``   everything a server must know, and the SHA-256 of every other file
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from csr.bundle.profile import InputProfile
from csr.bundle.validation import ValidationSet
from csr.data.digests import file_digest
from csr.errors import BundleError
from csr.interaction.naming import BoxNaming

FORMAT = 8
READABLE = (6, 7, FORMAT)  # 7 lacks what the validation studies say, and 6 the thresholds, too, which were a half
MANIFEST = "manifest.json"
INTERACTION_INPUTS = ("importance", "answers", "places", "absent_weight")  # of the reasoner, after ``patches``
ENCODER_OUTPUTS = ("patches", "fit_scores")
REASONER_OUTPUTS = (
    "similarity_maps",
    "concept_maps",
    "scores",
    "concept_probabilities",
    "contributions",
    "logits",
    "probabilities",
)
PRUNING_INPUTS = ("scores", "alive")
PRUNING_OUTPUTS = ("standard", "probabilities")
COMPARED_OUTPUTS = ("logits", "concept_maps")  # where parity and the golden case look: all inputs move one of them
Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class EncoderRecord:
    """Of an encoder that is not in float32, what was done to it, and what that changes.

    Args:
        precision: ``float16`` or ``int8``.
        calibration_images: training images that the ranges of int8 were taken from; None for float16.
        calibration_digest: SHA-256 of their pixels.
        parity: it beside the float32 encoder on validation studies; see `csr.bundle.reduced.compare_answers`.
    """

    precision: Precision
    calibration_images: int | None
    calibration_digest: str | None
    parity: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What a server must know about a bundle.

    Args:
        format: version of the bundle's layout.
        preset: ``paper`` or ``robust``, or ``custom``, trained without a pipeline.
        task: ``multiclass``, one class a study, or ``multilabel``, any number of them.
        concepts, classes: names, in the order of every K- and T-sized axis.
        channels, side: the encoder's input, C×S×S.
        display: the orientation that DICOM images of projections are brought into before they are shown to it, as in
            training (`csr.data.orientation`); None: they stay as they are stored.
        height, width: the maps' size in cells.
        per_concept, patch_width: M and D'.
        alpha: weight outside focus boxes that the reasoner carries: of every concept, or each one's own by its name.
        rejection: default replacement of rejected scores.
        ask_margin: a prediction asks for help when its margin is below it
            (`csr.data.decisions.decision_margin`).
        least_effect: no question is worth asking whose expected effect, in bits, is below it
            (`csr.interaction.questions`).
        thresholds: the probabilities from which on each class is found, if the task is ``multilabel``: whole percents,
            chosen on split ``val`` (`csr.evaluation.thresholds`); None: a half, or the task is another.
        abstain_below: the model abstains where its confidence is below it (`csr.data.decisions.study_confidence`);
            None: it always answers.
        backbone: timm's name.
        data, data_digest: the data set's name and the digest of its prepared form.
        code_revision: git revision of the code that exported it, with ``-dirty`` if it had local changes.
        metrics: the evaluation's results, one entry a test part.
        files: SHA-256 of every file but this one.
        encoder: in which precision the encoder is, and what that changes; None: in float32, as it was trained.
    """

    format: int
    preset: str
    task: Literal["multiclass", "multilabel"]
    concepts: tuple[str, ...]
    classes: tuple[str, ...]
    channels: int
    side: int
    display: str | None
    height: int
    width: int
    per_concept: int
    patch_width: int
    alpha: float | dict[str, float]
    rejection: str
    ask_margin: float
    least_effect: float
    abstain_below: float | None
    backbone: str
    data: str
    data_digest: str
    code_revision: str
    metrics: dict[str, Any]
    files: dict[str, str]
    thresholds: tuple[float, ...] | None = None
    encoder: EncoderRecord | None = None

    @property
    def precision(self) -> Precision:
        """Of the encoder's weights and activations."""
        return "float32" if self.encoder is None else self.encoder.precision


@dataclass(frozen=True)
class AtlasSource:
    """A training study that shows what a prototype stands for.

    Args:
        study_id: which.
        box: the neighbourhood shown as a crop, pixels of the prepared image (x_min, y_min, x_max, y_max).
        similarity: the inner product of the prototype and the study's projected concept vector.
    """

    study_id: str
    box: tuple[float, float, float, float]
    similarity: float


@dataclass(frozen=True)
class AtlasEntry:
    """One prototype: the training studies it resembles most, and what it does.

    Args:
        concept, index: which prototype.
        sources: those of largest similarity, the largest first: I(p) of the paper, and a few more, since one image
            leaves open what in it is meant. Fewer where fewer training studies show the concept.
        usage: share of the concept's training vectors for which the prototype is the nearest of those of its concept
            that are alive; 0 once it is pruned, so a concept's entries sum to 1.
        reliance: the head's use of it: mean |W_t,km·(s − mean)/std| over training images and classes, as a share of
            the whole head's; 0 once it is pruned.
        weights: W_t,km by class, in standardised units.
        alive: False once it is pruned.
    """

    concept: str
    index: int
    sources: tuple[AtlasSource, ...]
    usage: float
    reliance: float
    weights: dict[str, float]
    alive: bool = True


@dataclass(frozen=True)
class ConceptReference:
    """How a concept's probability was spread over the training images.

    Args:
        concept: its name.
        edges: ascending; bin i is edges[i − 1] < p ≤ edges[i], the first and the last bin are open.
        shares: of the training images, one a bin; each is above 0 and their sum is 1.
    """

    concept: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Opens a bundle and verifies every file's digest.

        Raises:
            BundleError: a file is missing, altered or unlisted, or the format is another.
        """
        file = path / MANIFEST
        try:
            content = json.loads(file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(
                f"{file}: missing; {path} is not a bundle (run dvc repro, or name another folder)"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BundleError(f"{file}: is not JSON ({error})") from None
        manifest = _read_manifest(file, content)
        _verify(path, manifest)
        return cls(path, manifest)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of everything in the bundle."""
        return file_digest(self.path / MANIFEST)

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum((self.path / name).stat().st_size for name in (MANIFEST, *self.manifest.files))

    def atlas(self) -> list[AtlasEntry]:
        """The atlas, concept by concept."""
        return read_atlas(self.path)

    def naming(self) -> BoxNaming | None:
        """What tells what a box is about; None if the validation split had too few boxes."""
        content = json.loads((self.path / "naming.json").read_text())
        return None if content is None else BoxNaming.from_json(content)

    def profile(self) -> InputProfile:
        """What the training images were."""
        return InputProfile.from_json(json.loads((self.path / "profile.json").read_text()))

    def reference(self) -> list[ConceptReference]:
        """The training images' concept probabilities without interaction, in the order of the manifest's concepts."""
        rows = json.loads((self.path / "reference.json").read_text())
        return [ConceptReference(row["concept"], tuple(row["edges"]), tuple(row["shares"])) for row in rows]

    def crops(self) -> np.ndarray:
        """S×C×c×c uint8: of every source of every entry, in the order of `atlas`."""
        return np.load(self.path / "crops.npy", mmap_mode="r")

    def crop_maps(self) -> np.ndarray | None:
        """S×c×c uint8: similarity maps over `crops`, in steps of 1/255; None if the bundle's format is older than 8."""
        return np.load(self.path / "crop_maps.npy") if self.manifest.format >= 8 else None

    def validation(self) -> ValidationSet | None:
        """What the validation studies say about the prototypes; None if the bundle's format is older than 8."""
        if self.manifest.format < 8:
            return None
        return ValidationSet.read((self.path / "validation.npz").read_bytes())

    def golden(self) -> dict[str, np.ndarray]:
        """``image``, the `INTERACTION_INPUTS`, ``expected_fit_scores`` and ``expected_<output>`` of the golden case,
        and, if the encoder is not in float32, ``tolerance_<output>`` (`csr.bundle.runtime.golden_gap`)."""
        with np.load(self.path / "golden.npz") as arrays:
            return dict(arrays)

    def samples(self) -> list[dict[str, Any]]:
        """The sample images: ``study_id, file, diagnosis, concepts, boxes``."""
        return json.loads((self.path / "samples" / "samples.json").read_text())


def write_atlas(folder: Path, entries: Sequence[AtlasEntry], crops: np.ndarray) -> None:
    """Writes ``atlas.json`` and ``crops.npy``; see the module's docstring."""
    rows = [asdict(entry) for entry in entries]
    (folder / "atlas.json").write_text(json.dumps(rows, indent=1) + "\n")
    np.save(folder / "crops.npy", crops)


def read_atlas(folder: Path) -> list[AtlasEntry]:
    """The entries that `write_atlas` wrote."""
    rows = json.loads((folder / "atlas.json").read_text())
    return [AtlasEntry(**(row | {"sources": tuple(map(_source, row["sources"]))})) for row in rows]


def _source(row: dict[str, Any]) -> AtlasSource:
    return AtlasSource(**(row | {"box": tuple(row["box"])}))


def write_reference(folder: Path, references: Sequence[ConceptReference]) -> None:
    """Writes ``reference.json``; see the module's docstring."""
    rows = [asdict(reference) for reference in references]
    (folder / "reference.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def _read_manifest(file: Path, content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") not in READABLE:
        found = content.get("format") if isinstance(content, dict) else None
        raise BundleError(
            f"{file}: format is {found!r}, this version reads {READABLE[0]} to {FORMAT}; export the bundle "
            "again (dvc repro)"
        )
    if content["format"] < 7:
        content = content | {"thresholds": None}
    content = {"encoder": None} | content
    missing = [field.name for field in fields(Manifest) if field.name not in content]
    if missing:
        raise BundleError(f"{file}: key {missing[0]!r} is missing; export the bundle again")
    for key, kind, word in (("files", dict, "an object"), ("concepts", list, "a list"), ("classes", list, "a list")):
        if not isinstance(content[key], kind):
            raise BundleError(f"{file}: key {key!r} must be {word}; export the bundle again")
    known = {field.name: content[field.name] for field in fields(Manifest)}
    thresholds = known["thresholds"]
    if thresholds is not None and not _fit(thresholds, len(known["classes"])):
        raise BundleError(
            f"{file}: key 'thresholds' must be null or a number between 0 and 1 a class; export the bundle again"
        )
    tuples = {"concepts": tuple(known["concepts"]), "classes": tuple(known["classes"])}
    known |= {"thresholds": None if thresholds is None else tuple(thresholds), "encoder": _read_encoder(file, content)}
    return Manifest(**(known | tuples))


def _read_encoder(file: Path, content: dict[str, Any]) -> EncoderRecord | None:
    record = content["encoder"]
    if record is None:
        return None
    keys = {field.name for field in fields(EncoderRecord)}
    if not isinstance(record, dict) or set(record) != keys or record["precision"] not in ("float16", "int8"):
        raise BundleError(f"{file}: key 'encoder' must be null or say precision, calibration and parity; export again")
    return EncoderRecord(**record)


def _fit(thresholds: Any, classes: int) -> bool:
    if not isinstance(thresholds, list) or len(thresholds) != classes:
        return False
    return all(isinstance(each, float) and 0 < each < 1 for each in thresholds)


def _verify(path: Path, manifest: Manifest) -> None:
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    for name, expected in manifest.files.items():
        if name not in present:
            raise BundleError(f"{path / name}: missing; the bundle is incomplete")
        if file_digest(path / name) != expected:
            raise BundleError(f"{path / name}: digest differs from the manifest's; the file was altered after export")
    if extra := sorted(present - set(manifest.files)):
        raise BundleError(f"{path / extra[0]}: is not listed in the manifest; remove it or export the bundle again")


def write_manifest(path: Path, **known: Any) -> Manifest:
    """Completes ``known`` with format and digests of the files in ``path`` and writes ``manifest.json``."""
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    manifest = Manifest(format=FORMAT, files={name: file_digest(path / name) for name in names}, **known)
    content = asdict(manifest)
    if manifest.encoder is None:  # nothing to say, and a float32 bundle stays the same to the byte
        del content["encoder"]
    (path / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return manifest
