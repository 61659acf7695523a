"""What Ray Train costs stage 1: seconds a step in this process and with one, two and four workers, and a checkpoint's.

    python -m tests.bench.ray_train --out FILE.json

Every process computes with one thread, so that a worker's overhead is not hidden behind torch's own use of the cores;
the second row has two threads instead of two workers. The batch is the same in all: workers share it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from csr.bench.rows import Row, row
from csr.data.phantom import PhantomConfig, generate
from csr.network.concept_model import ConceptModelConfig
from csr.training.callbacks import Callbacks, State
from csr.training.concepts import ConceptTrainingConfig
from pipelines.concepts import fit
from pipelines.params import TrainParams
from pipelines.training import train
from tests.bench.results import save

BATCH, SIDE, STUDIES = 16, 192, 320
WARM_UP = 4  # steps of the first epoch that are not counted
CONFIG = ConceptTrainingConfig(ConceptModelConfig("regnetx_002"), epochs=2, batch_size=BATCH, precision="float32")


def timed_fit(prepared: Path, config: ConceptTrainingConfig, callbacks: Callbacks) -> State:
    """Stage 1, and how long its steps and checkpoints took on rank 0, in seconds."""
    track, epoch = callbacks.track, callbacks.epoch
    steps: list[float] = []
    saved: list[float] = []

    def stamped(batches: Iterable, total: int, description: str) -> Iterator:
        last = time.perf_counter()
        for batch in track(batches, total, description):
            yield batch
            now = time.perf_counter()
            steps.append(now - last)
            last = now

    def saving(metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        start = time.perf_counter()
        epoch(metrics, state)
        saved.append(time.perf_counter() - start)

    callbacks.track, callbacks.epoch = stamped, saving  # type: ignore[method-assign]
    fit(prepared, config=config, callbacks=callbacks)
    return {"steps": steps[WARM_UP:], "saved": saved}


def measure(prepared: Path, params: TrainParams) -> tuple[list[float], list[float], float]:
    """Seconds of each step and checkpoint, and of all, start and end included."""
    start = time.perf_counter()
    found, _ = train("concepts", partial(timed_fit, config=CONFIG), CONFIG, [prepared], params)
    return found["steps"], found["saved"], time.perf_counter() - start


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ray_train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.resolve()
    ways = {
        "stage 1, a step in this process, one thread": TrainParams(threads=1),
        "stage 1, a step in this process, two threads": TrainParams(threads=2),
        "stage 1, a step with 1 worker": TrainParams(workers=1, threads=1),
        "stage 1, a step with 2 workers": TrainParams(workers=2, threads=1),
        "stage 1, a step with 4 workers": TrainParams(workers=4, threads=1),
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared"
        generate(PhantomConfig(train=STUDIES, val=BATCH, test=BATCH), SIDE, prepared)
        os.chdir(scratch)  # where checkpoints go
        for name, params in ways.items():
            steps, saved, whole = measure(prepared, params)
            first = rows[0] if rows else None
            rows.append(row(name, "s", "lower", steps, first))
            if params.workers in (0, 2) and params.threads == 1:
                where = "with 2 workers" if params.workers else "in this process"
                rows.append(row(f"stage 1, a checkpoint {where}", "s", "lower", saved, rows[0]))
            if params.workers == 1:
                start = whole - sum(saved) - len(steps) * statistics.median(steps)
                rows.append(row("Ray with 1 worker: all but steps and checkpoints", "s", "lower", [start]))
    save(rows, out)


if __name__ == "__main__":
    main()
