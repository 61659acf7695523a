"""How time and memory grow with what there is to do: each quantity at four sizes, and the exponent of its growth.

    python -m tests.bench.growth --out reports/bench/growth.json [--only "ledger" ...] [--quick]

Work that takes c·n^e is a line of slope e when both axes are logarithms; e is fitted by least squares, with its
standard error. Each size is measured in a process of its own, after a warm-up at a small one. Time is of the processor,
all threads, so that a machine that is busy with something else does not count; memory is the peak above what the
process held before the work began. A memory below 4 MB counts as 4 MB: the interpreter's own pages are what is measured
there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.growth_cases import CASES, Case
from tests.bench.results import Grown, save

_LEAST_MB = 4.0


def fit(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The exponent e of c·n^e and its standard error, by least squares on the logarithms of n sizes (n ≥ 3)."""
    x, y = np.log(sizes), np.log(values)
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    left = y - y.mean() - slope * centred
    error = float(np.sqrt(left @ left / (len(x) - 2) / (centred @ centred)))
    return slope, error


def measure(case: Case, sizes: Sequence[int], scratch: Path) -> list[Grown]:
    """Its two rows, of time and of memory; their rounds are those of the largest size."""
    seconds, peaks = [], []
    for size in sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            took, peak = pool.apply(_measured, (case.name, size, scratch))
        seconds.append(took)
        peaks.append(peak)
        if not case.shares:
            shutil.rmtree(_folder(case, size, scratch), ignore_errors=True)
    rows = []
    for what, unit, rounds in (("time", "s", seconds), ("memory", "MB", [[peak] for peak in peaks])):
        values = [statistics.median(each) for each in rounds]
        exponent, error = fit(sizes, values)
        found = {"sizes": list(sizes), "values": values, "exponent": exponent, "exponent_se": error}
        rows.append(Grown(f"{case.name}: {what}", unit, "lower", rounds[-1], **found))
    return rows


def _measured(name: str, size: int, scratch: Path) -> tuple[list[float], float]:
    """Seconds of each round, and MB of memory; in a process of its own."""
    (case,) = (each for each in CASES if each.name == name)
    _made(case, case.quick[0], scratch)()
    work = _made(case, size, scratch)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    rounds = []
    for _ in range(case.rounds):
        start = time.process_time()
        work()
        rounds.append(time.process_time() - start)
    return rounds, max(_status("VmHWM") - before, _LEAST_MB)


def _made(case: Case, size: int, scratch: Path) -> Any:
    folder = _folder(case, size, scratch)
    if not folder.exists():
        case.make(folder, size)
    return case.start(folder, size)


def _folder(case: Case, size: int, scratch: Path) -> Path:
    return scratch / f"{case.shares or CASES.index(case)}-{size}"


def _status(name: str) -> float:
    """A line of this process's memory, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="quantities whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run? its exponents say nothing")
    given = parser.parse_args(arguments)
    chosen = [case for case in CASES if not given.only or any(name in case.name for name in given.only)]
    if not chosen:
        parser.error(f"no quantity is called so; there are: {'; '.join(case.name for case in CASES)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[Grown] = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in chosen:
            for row in measure(case, case.quick if given.quick else case.sizes, Path(scratch)):
                rows.append(row)
                print(_line(row), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save(rows, given.out)


def _line(row: Grown) -> str:
    values = " ".join(f"{value:.3g}" for value in row.values)
    return f"{row.name:<52} n^{row.exponent:.2f} ± {row.exponent_se:.2f}  {values} {row.unit}"


if __name__ == "__main__":
    main()
