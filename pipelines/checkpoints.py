"""Which interrupted training may be continued: one made of the same parameters, inputs, code, libraries and workers.

A training's checkpoints lie in ``.state/checkpoints/<stage>-<digest>``, and what it is made of beside them, as JSON.
The digest is of that, so a training of anything else never finds them. It says in one sentence what differs, and
removes them: a stage keeps the checkpoints of one training at a time.

The number of workers is part of it because layers that draw, such as dropout, draw other numbers in each: a training
continued by another number would be neither the one nor the other. A range of numbers (``train.least_workers``) is one
training, which any number in it continues.

With ``train.storage`` the checkpoints lie there, under the same name; the note stays here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csr.data.digests import file_digest
from pipelines.digests import path_digest
from pipelines.flatten import flatten
from pipelines.imports import ROOT, needed_files
from pipelines.tracking import STATE

if TYPE_CHECKING:
    from pipelines.storage import Storage

CHECKPOINTS = STATE / "checkpoints"
LIBRARIES = ("torch", "timm")
_SHOWN = 3  # differences that the sentence names


@dataclass(frozen=True)
class MadeOf:
    """What a training is made of: ``values`` of parameters, libraries and workers, digests of ``files`` and folders."""

    values: dict[str, str]
    files: dict[str, str]

    @classmethod
    def of(cls, stage: str, config: Any, inputs: Iterable[Path], workers: int | tuple[int, int], code: str) -> MadeOf:
        """Gathers it.

        Args:
            config: the dataclass of the stage's parameters.
            inputs: files and folders that the training reads.
            workers: how many take part, or how few and how many; 0 is this process alone.
            code: the module whose imports are the training's code.
        """
        parameters = {name: str(value) for name, value in flatten(config, stage).items()}
        libraries = {name: version(name) for name in LIBRARIES}
        read = {str(path): path_digest(path) for path in inputs}
        sources = {name: file_digest(ROOT / name) for name in sorted(needed_files([code]))}
        return cls(parameters | libraries | {"train.workers": str(workers)}, read | sources)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, earlier: MadeOf) -> list[str]:
        """What has changed since an earlier training, an expression each."""
        found = [
            f"{name} is {new or 'gone'} and was {old or 'not there'}"
            for name, old, new in _changed(earlier.values, self.values)
        ]
        for name, old, new in _changed(earlier.files, self.files):
            found.append(f"{name} " + ("has changed" if old and new else "is new" if new else "is gone"))
        return found


def claim(stage: str, made_of: MadeOf, storage: Storage | None = None) -> str:
    """The name under which a training keeps its checkpoints; those of other trainings of the stage are removed."""
    name = f"{stage}-{made_of.digest}"
    for other in {path.stem for path in CHECKPOINTS.glob(f"{stage}-*")} - {name}:
        if (CHECKPOINTS / other).is_dir() or (storage is not None and storage.has_checkpoints(other)):
            why = _why(made_of, other)
            print(f"{stage}: an interrupted training is not continued but started anew: {why}", flush=True)
        forget(other, storage)
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    _note(name).write_text(json.dumps(asdict(made_of), indent=2) + "\n")
    return name


def forget(name: str, storage: Storage | None = None) -> None:
    """Removes a training's checkpoints."""
    if storage is not None:
        storage.forget_checkpoints(name)
    shutil.rmtree(CHECKPOINTS / name, ignore_errors=True)
    _note(name).unlink(missing_ok=True)


def _why(made_of: MadeOf, other: str) -> str:
    if not _note(other).is_file():
        return "nothing says what it was made of"
    found = made_of.differences(MadeOf(**json.loads(_note(other).read_text())))
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _note(name: str) -> Path:
    return CHECKPOINTS / f"{name}.json"


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """Names whose values differ, with both; "" stands for none."""
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, old.get(name, ""), new.get(name, "")
