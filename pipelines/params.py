"""``params.yaml``, the only knob file, checked once into frozen typed objects.

An unknown key is an error that names its nearest neighbour. Keys that a preset decides may be null: they take their
values from the preset's file, ``params/presets/<preset>.yaml``, which has sections as ``params.yaml`` has. DVC knows
these files, so an edit to a section runs the stages again that use it, and no others. Keys that say how weights are
trained on and are null take the values that fit pretrained weights, or random ones (`csr.training.fine_tuning`).
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from csr.bundle.writing import ExportConfig
from csr.data.leaks import NEAR
from csr.data.orientation import CHEST, directions
from csr.data.phantom.plan import PhantomConfig
from csr.data.records import Task
from csr.data.sources.tbx11k import TBX11KConfig
from csr.data.sources.vindr_cxr import VinDrConfig
from csr.data.splits import SplitShares
from csr.data.tasks import TaskChoice
from csr.data.text_concepts import TextConceptConfig
from csr.errors import ConfigError
from csr.training.concepts import ConceptTrainingConfig
from csr.training.fine_tuning import PRETRAINED, SCRATCH
from csr.training.head import HeadConfig
from csr.training.prototypes import PrototypeConfig
from csr.training.runtime import TF32, DeviceChoice, check_share

PARAMS_FILE = Path("params.yaml")
PRESETS = Path("params/presets")  # beside the parameters
AUTO = "auto"
FEEDBACK = PurePosixPath("data/feedback")  # a dependency of the stages that read feedback, in dvc.yaml
_PRESET_SECTIONS = ("concepts", "prototypes", "head", "export")  # whose stages depend on the preset, in dvc.yaml


@dataclass(frozen=True)
class DataParams:
    """What is learned from.

    Args:
        source: ``phantom``, made on the spot; ``table``, a folder in the layout that the README describes; or
            ``tbx11k``, ``vindr_cxr``, ``isic2017``, ``isic2018``, folders as their publishers ship them.
        path: the folder of a real set.
        side, channels: every image becomes channels×side×side.
        display: how patients lie in the images, ``L\\F`` for chest radiographs: the patient's left at the right, the
            feet below. DICOM images of projections that say how they lie are brought there, in training and in
            serving (`csr.data.orientation`); null: they stay as they are stored.
        validation_share, test_share: used where the split column is empty; seeded, grouped by patient.
        split_seed: of those splits, and of the folds.
        folds, fold: instead of shares, deal the studies without a split to so many folds of equal size and judge on
            number ``fold``, from 0; see `csr.data.splits.SplitShares`. Null: no folds.
        workers: processes that decode or render; 0 means one a core.
        skip_bad: leave out studies, rows and boxes that are wrong instead of refusing the set; ``skipped.csv`` of the
            prepared set lists them.
        lenient: take a name of an image or mask for the file that it fits but for capitals, backslashes or a missing
            extension, if no other does; the data report says so.
        near_bits: two images of different splits whose perceptual hashes differ in at most so many of 256 bits are
            taken for the same picture, which the stage refuses; -1 compares pixels only.
        task, concepts, targets, merge: what is learned from a real set's labels; see `csr.data.tasks.TaskChoice`.
        tbx11k, vindr_cxr: what these data sets leave to their user.
        feedback: what readers corrected and reviewers pruned, a set that ``csr feedback export`` wrote
            (`csr.data.feedback`): ``data/feedback`` or a folder in it, which DVC watches; ``auto``: the one that is
            there, if any is; null for none.
        feedback_classes: whether the classes of corrected studies that their readers signed are learned, and not their
            concepts alone.
        text_concepts: labels for concepts of a real set that an image-text encoder knows by name; null for none.
    """

    source: Literal["phantom", "table", "tbx11k", "vindr_cxr", "isic2017", "isic2018"] = "phantom"
    path: str = "data/raw"
    side: int = 192
    channels: Literal[1, 3] = 1
    display: str | None = CHEST
    validation_share: float = SplitShares.validation
    test_share: float = SplitShares.test
    split_seed: int = SplitShares.seed
    folds: int | None = SplitShares.folds
    fold: int = SplitShares.fold
    workers: int = 0
    skip_bad: bool = False
    lenient: bool = False
    near_bits: int = NEAR
    task: Task | None = None
    concepts: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    merge: dict[str, tuple[str, ...]] | None = None
    tbx11k: TBX11KConfig = field(default_factory=TBX11KConfig)
    vindr_cxr: VinDrConfig = field(default_factory=VinDrConfig)
    feedback: str | None = AUTO
    feedback_classes: bool = True
    text_concepts: TextConceptConfig | None = None
    phantom: PhantomConfig = field(default_factory=PhantomConfig)

    @property
    def shares(self) -> SplitShares:
        """How studies without a split are divided."""
        return SplitShares(self.validation_share, self.test_share, self.split_seed, self.folds, self.fold)

    @property
    def choice(self) -> TaskChoice:
        """What is learned from a real set's labels."""
        return TaskChoice(self.task, self.concepts, self.targets, self.merge or {})

    def __post_init__(self) -> None:
        _ = self.shares  # refuses folds that cannot be
        if self.display is not None:
            try:
                directions(self.display)
            except ValueError as error:
                raise ValueError(f"data.display: {error}") from None
        if self.feedback not in (None, AUTO) and not _watched(str(self.feedback)):
            raise ValueError(
                f"data.feedback: must be {AUTO}, {FEEDBACK} or a folder in it, which DVC watches, got {self.feedback!r}"
            )
        if self.source == "phantom" and self.choice != TaskChoice():
            raise ValueError("data.task, concepts, targets and merge are for real sets; the phantom's task is fixed")
        if self.text_concepts is not None and self.source == "phantom":
            raise ValueError(
                "data.text_concepts: the phantom has every label; set this to null, or data.source to table"
            )


@dataclass(frozen=True)
class TrainParams:
    """Where the training stages run.

    Args:
        workers: 0 runs in this process; n ≥ 1 starts Ray with n workers. They share each batch of stages 1 and 2, so
            what is learned is the same, but for rounding, however many they are.
        least_workers: with how many training starts, and goes on when machines leave; Ray takes more as they come, up
            to ``workers``. null: always with ``workers``.
        gpu: ``auto`` gives this process, or each worker, a GPU when there is one; ``never`` keeps all stages off it.
        threads: torch threads a process on the CPU; 0 leaves torch's choice.
        tf32, autotune: how a GPU computes while it trains and caches features; see `csr.training.runtime.tune_gpu`.
        max_failures: how often Ray restarts a failed worker group, from its last checkpoint.
        storage: where workers on other machines find what they read and leave their checkpoints, an address that
            `pipelines.storage` opens; null: all of them see this folder. Without workers nothing goes there.
    """

    workers: int = 0
    least_workers: int | None = None
    gpu: Literal["auto", "never"] = "auto"
    threads: int = 0
    tf32: TF32 = "convolutions"
    autotune: bool = True
    max_failures: int = 1
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.least_workers is not None and not 1 <= self.least_workers <= self.workers:
            raise ValueError(
                f"train.least_workers: must be null or 1 to train.workers, which is {self.workers}; "
                f"got {self.least_workers}"
            )

    @property
    def range(self) -> int | tuple[int, int]:
        """How many workers, or how few and how many, as Ray Train takes it."""
        return self.workers if self.least_workers is None else (self.least_workers, self.workers)

    @property
    def device(self) -> DeviceChoice:
        """What stages tell `csr.training.runtime.use_device`."""
        return "auto" if self.gpu == "auto" else "cpu"


@dataclass(frozen=True)
class EvaluateParams:
    """What the evaluation draws: ``montage`` test images with maps and boxes."""

    montage: int = 6


@dataclass(frozen=True)
class ComparisonParams:
    """What `pipelines/comparison/dvc.yaml` compares.

    Args:
        folder: where its reports go; name it after the data set.
        seeds: of training; every system is trained once with each.
        trials: of settings that each system that learns from images gets before that, judged on ``val`` with the first
            seed; 0: all have the same settings, those of ``concepts``. `pipelines.comparison.trials` says which knobs.
    """

    folder: Path = Path("reports/comparison")
    seeds: tuple[int, ...] = (0, 1, 2)
    trials: int = 0

    def __post_init__(self) -> None:
        if self.trials < 0:
            raise ValueError(f"comparison.trials: must be 0 or more, got {self.trials}")


@dataclass(frozen=True)
class Params:
    """All of ``params.yaml``, presets resolved."""

    preset: str
    data: DataParams = field(default_factory=DataParams)
    concepts: ConceptTrainingConfig = field(default_factory=ConceptTrainingConfig)
    prototypes: PrototypeConfig = field(default_factory=PrototypeConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)
    export: ExportConfig = field(default_factory=ExportConfig)
    comparison: ComparisonParams = field(default_factory=ComparisonParams)
    train: TrainParams = field(default_factory=TrainParams)

    def __post_init__(self) -> None:
        try:
            check_share(self.concepts.batch_size, self.train.workers, "concepts")
            check_share(self.prototypes.batch_size, self.train.workers, "prototypes")
        except ConfigError as error:
            raise ValueError(str(error)) from None


def _watched(folder: str) -> bool:
    path = PurePosixPath(folder)
    return ".." not in path.parts and FEEDBACK in (path, *path.parents)


def load_params(file: Path = PARAMS_FILE, preset: str | None = None) -> Params:
    """Reads and checks the whole file and the preset's.

    Args:
        preset: to be used in place of the one that the file names.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, or a value is of the wrong type or range.
    """
    content = _read(file)
    if preset is not None and isinstance(content, dict):
        content = content | {"preset": preset}
    return parse_params(content, str(file), file.parent / PRESETS)


def parse_params(content: Any, source: str = str(PARAMS_FILE), presets: Path = PRESETS) -> Params:
    """Checks what a YAML file held; see `load_params`. ``presets`` is the folder of the presets' files."""
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: must hold sections such as 'data' and 'concepts'")
    _refuse_unknown(content, Params, source, "")
    return _validate(_tuned(_filled(content, _preset(content, source, presets))), source)


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{file}: missing; run this from the project's folder") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not YAML ({' '.join(str(error).split())})") from None


def _validate(content: dict[str, Any], source: str) -> Params:
    try:
        return TypeAdapter(Params).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = _key(first, content)
        where = f"{key}: " if key and not str(first["msg"]).startswith(f"Value error, {key}") else ""
        tried = [str(each["msg"]) for each in error.errors() if _key(each, content) == key]
        reason = " or ".join(tried).removeprefix("Value error, ")
        got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise ConfigError(f"{source}: {where}{reason}{got}") from None


def _key(error: Any, content: Any) -> str:
    """The key at fault; of a value that may be of several types pydantic also names the one it tried."""
    names: list[str] = []
    for part in error["loc"]:
        if isinstance(content, dict):
            if part not in content and error["type"] != "missing":
                break
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int):
            content = content[part]
        else:
            break
        names.append(str(part))
    return ".".join(names)


def _refuse_unknown(content: dict[str, Any], kind: type, source: str, prefix: str) -> None:
    hints = get_type_hints(kind)
    for key, value in content.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0)
            raise ConfigError(f"{source}: unknown key {prefix + str(key)!r}; did you mean {prefix + near[0]!r}?")
        inner = next((part for part in (hints[key], *get_args(hints[key])) if is_dataclass(part)), None)
        if not isinstance(inner, type) or not isinstance(value, dict):
            continue
        of_user = get_origin(hints[key]) is dict  # the user's own names, a section each
        sections = {f"{key}.{name}": section for name, section in value.items()} if of_user else {key: value}
        for name, section in sections.items():
            if isinstance(section, dict):
                _refuse_unknown(section, inner, source, f"{prefix}{name}.")


def _preset(content: dict[str, Any], source: str, folder: Path) -> dict[str, Any]:
    """What the preset's file holds, checked on its own, so that a mistake in it names that file."""
    known, name = sorted(file.stem for file in folder.glob("*.yaml")), content.get("preset")
    if name not in known:
        listed = ", ".join(known) or f"a file in {folder}, which has none; run this from the project's folder"
        raise ConfigError(f"{source}: preset: must be one of {listed}, got {name!r}")
    file = folder / f"{name}.yaml"
    values = _read(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold the sections {', '.join(_PRESET_SECTIONS)}")
    _refuse_unknown(values, Params, str(file), "")
    for section in values:
        if section not in _PRESET_SECTIONS:
            raise ConfigError(f"{file}: {section}: a preset holds {', '.join(_PRESET_SECTIONS)} only")
    for section in _PRESET_SECTIONS:
        if not isinstance(values.get(section), dict):
            raise ConfigError(f"{file}: has no section {section!r}; a preset needs {', '.join(_PRESET_SECTIONS)}")
    _validate({**values, "preset": name}, str(file))
    return values


def _tuned(content: dict[str, Any]) -> dict[str, Any]:
    """The values that fit the weights which stage 1 starts from, where the content is null or silent."""
    concepts = content.get("concepts")
    model = concepts.get("model") if isinstance(concepts, dict) else None
    given = isinstance(model, dict) and bool(model.get("pretrained") or model.get("checkpoint"))
    filled: dict[str, Any] = _filled(content, {"concepts": asdict(PRETRAINED if given else SCRATCH)})
    return filled


def _filled(content: Any, preset: Any) -> Any:
    """The preset's values where the content is null or silent."""
    if isinstance(preset, dict) and (content is None or isinstance(content, dict)):
        own = content or {}
        return own | {key: _filled(own.get(key), value) for key, value in preset.items()}
    return preset if content is None else content
