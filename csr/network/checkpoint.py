"""Files of trained weights: plain types and tensors, never pickled objects, with what they hold and a format number."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import torch

from csr.errors import DataError

FORMAT = 1  # raise it with every change of what a checkpoint holds

Kind = Literal["concept model", "prototype model", "trained CSR", "compared system"]
Checkpoint = dict[str, Any]


def checkpoint(kind: Kind, config: dict[str, Any], weights: dict[str, Any]) -> Checkpoint:
    """What a file of weights holds.

    Args:
        kind: of what.
        config: plain types; all that is needed to build the module anew.
        weights: its state dict.
    """
    return {
        "format": FORMAT,
        "kind": kind,
        "config": config,
        "weights": {n: value.cpu() for n, value in weights.items()},
    }


def write_checkpoint(content: Checkpoint, file: Path) -> None:
    """Writes what `checkpoint` made."""
    torch.save(content, file)


def read_checkpoint(file: Path, kind: Kind) -> Checkpoint:
    """Reads what `write_checkpoint` wrote, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file holds something else, or was written by a version with another format.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise DataError(f"{file}: is no checkpoint of plain weights; make it anew (dvc repro)") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        other = "no format number" if found is None else f"format {found}"
        raise DataError(f"{file}: has {other}, this version reads format {FORMAT}; make it anew (dvc repro)")
    if content["kind"] != kind:
        raise DataError(f"{file}: holds a {content['kind']}, not a {kind}")
    return content
