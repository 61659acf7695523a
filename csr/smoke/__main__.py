"""Everything once, on this machine's GPU if it has one: what works, how fast, in how much memory.

    python -m csr.smoke [--device auto|cpu|cuda] [--small]

Draws a small phantom, trains the three stages and every rival of the comparison, corrects, refines, exports, and
compares the exported graphs with torch where it computes. Needs torch, timm and what `csr` itself needs, no pipeline
around it; writes nothing that stays. Exit status 1 if anything failed. With ``--small`` it is a matter of a minute or
two on two cores of a CPU; the numbers of so short a training mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from csr.errors import CSRError
from csr.smoke.steps import FULL, SMALL, Size, Walk
from csr.smoke.table import Table
from csr.training.runtime import DeviceChoice, device, use_device


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m csr.smoke", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=get_args(DeviceChoice), default="auto")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; those below replace single ones")
    for field in fields(Size):
        default = getattr(FULL, field.name)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), help=f"default: {default}")
    given = vars(parser.parse_args(arguments))
    chosen = {field.name: given[field.name] for field in fields(Size) if given[field.name] is not None}
    try:
        use_device(given["device"])
    except CSRError as error:
        sys.exit(f"smoke: {error}")
    if failed := smoke(replace(SMALL if given["small"] else FULL, **chosen), partial(print, flush=True)):
        sys.exit(f"smoke: failed: {', '.join(failed)}")


def smoke(size: Size, say: Callable[[str], None]) -> list[str]:
    """Runs all steps in a folder that is thrown away.

    Args:
        size: how much is drawn and trained.
        say: takes the table's lines.

    Returns:
        The names of the steps that failed.
    """
    place, start = device(), time.perf_counter()
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{platform.machine()} CPU"
    cores = len(os.sched_getaffinity(0))
    say(f"csr.smoke on {place} ({name}), {cores} cores, torch {torch.__version__}, Python {platform.python_version()}")
    say(", ".join(f"{field.name} {getattr(size, field.name)}" for field in fields(Size)) + "\n")
    table = Table(place, say)
    with tempfile.TemporaryDirectory() as folder:
        Walk(size, Path(folder), cores).run(table)
    say(f"\n{'FAILED' if table.failed else 'ok'} in {time.perf_counter() - start:.0f} seconds")
    return table.failed


if __name__ == "__main__":
    main()
