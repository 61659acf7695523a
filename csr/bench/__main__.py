"""Measures training on this machine, on its GPU if it has one.

    python -m csr.bench [--out FILE.json] [--parts loop stages peers] [--device auto|cpu|cuda] [--tiny]

Prints medians, spreads and ratios, and writes them as JSON: ``header`` with ``device, cores, torch, commit``,
and ``rows`` with ``name, unit, better, rounds, median, ratio_to, ratio`` (`csr.bench.rows.Row`). By its defaults it
takes about ten minutes on two cores of a CPU that do nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import get_args

from csr.bench.protocol import header, line, write
from csr.bench.training import PARTS, TINY, Size, bench
from csr.errors import CSRError
from csr.training.runtime import DeviceChoice, tune_gpu, use_device


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m csr.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=get_args(DeviceChoice), default="auto")
    parser.add_argument("--tiny", action="store_true", help="sizes of a test; those below replace single ones")
    for field in fields(Size):
        default = getattr(Size(), field.name)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), help=f"default: {default}")
    given = vars(parser.parse_args(arguments))
    chosen = {field.name: given[field.name] for field in fields(Size) if given[field.name] is not None}
    say = partial(print, file=sys.stderr, flush=True)
    try:
        use_device(given["device"])
        tune_gpu()
        size = replace(TINY if given["tiny"] else Size(), **chosen)
        rows = bench(size, given["parts"], len(os.sched_getaffinity(0)), say)
    except CSRError as error:
        sys.exit(f"bench: {error}")
    print(", ".join(f"{name} {value}" for name, value in header().items()))
    print(*map(line, rows), sep="\n")
    if given["out"]:
        write(rows, given["out"])


if __name__ == "__main__":
    main()
