"""How near training comes to what this machine's GPU can do. Needs torch, timm and what `csr` itself needs.

    python -m csr.bench_gpu [--out FILE.json] [--seconds 450] [--device auto|cpu|cuda] [--tiny]

Stage 1 by network and side in bfloat16 as a share of the floor (`csr.bench_gpu.floors`) with its peak memory, its loop
against tensors in memory, stages 2 and 3 at 15,000 images and 1,400 prototypes, the kernel of the similarity maps
against its memory floor, and the loop on a phantom of 20,000 images of 512². The form is that of `csr.bench`, with
``left_out``: what had no time, or no memory, and why. It runs on a CPU, too; ``--tiny`` is for that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from csr.bench.protocol import document, header, line
from csr.bench_gpu.sections import TINY, GPUBench, GPUSize
from csr.errors import CSRError
from csr.training.runtime import DeviceChoice, tune_gpu, use_device


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m csr.bench_gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--seconds", type=float, help=f"all may take; default: {GPUSize().seconds:.0f}")
    parser.add_argument("--device", choices=get_args(DeviceChoice), default="auto")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    given = parser.parse_args(arguments)
    try:
        use_device(given.device)
    except CSRError as error:
        sys.exit(f"bench_gpu: {error}")
    tune_gpu()
    size = TINY if given.tiny else GPUSize()
    size = size if given.seconds is None else replace(size, seconds=given.seconds)
    bench = GPUBench(size, len(os.sched_getaffinity(0)), partial(print, file=sys.stderr, flush=True))
    bench.run()
    print(", ".join(f"{name} {value}" for name, value in header().items()))
    print(*map(line, bench.rows), sep="\n")
    for each in bench.left_out:
        print(f"left out: {each['name']}: {each['reason']}")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(document(bench.rows) | {"left_out": bench.left_out}, indent=2) + "\n")


if __name__ == "__main__":
    main()
