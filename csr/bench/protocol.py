"""How things are measured: warm, in turns, several times, as medians; and how that is written.

What is compared runs in turns within one process, round by round, so that whatever else the machine does meets all of
it alike. Ratios are those of medians. Numbers of different machines, or of different runs, are not to be compared.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from csr.bench.rows import Row
from csr.training.runtime import device


def in_turns(bodies: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each body measured in each round. Every other round goes backwards, so that none is always first."""
    found: dict[str, list[float]] = {name: [] for name in bodies}
    for number in range(rounds):
        for name in list(bodies)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(bodies[name]())
    return found


def now() -> float:
    """The time in seconds, once the GPU, if there is one, has done what it was told."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def header() -> dict[str, Any]:
    """Where and by what code it was measured: ``device, cores, torch, commit``."""
    place = device()
    return {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else f"{platform.machine()} CPU",
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """The header and the rows as plain types."""
    return {"header": header(), "rows": [each.to_json() for each in rows]}


def write(rows: Sequence[Row], file: Path) -> None:
    """Writes `document` as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document(rows), indent=2) + "\n")


def line(each: Row) -> str:
    """A row for people."""
    spread = f"{min(each.rounds):.4g}–{max(each.rounds):.4g}"
    ratio = "" if each.ratio is None else f"   {each.ratio:.3f} of {each.ratio_to}"
    return f"{each.name:<44} {each.median:>9.4g} {each.unit:<10} ({spread}){ratio}"


def _commit() -> str | None:
    """The commit of this code; None where it is no git checkout."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()
