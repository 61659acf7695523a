"""What every stage's entry point shares: parameters, the MLflow run, atomic outputs, and errors for people."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from csr.errors import CSRError
from pipelines.runs.passes import stage_run
from pipelines.tracking import log_metrics

if TYPE_CHECKING:
    from pipelines.params import Params

PREPARED = Path("data/prepared")
CONCEPTS = Path("build/concepts")
FEATURES = Path("build/features")
PROTOTYPES = Path("build/prototypes")
HEAD = Path("build/head")
ATLAS = Path("build/atlas")
BUNDLE = Path("build/bundle")
REPORTS = Path("reports")
OUTPUTS = {  # what each stage of the pipeline writes, in order
    "prepare": PREPARED,
    "concepts": CONCEPTS,
    "features": FEATURES,
    "prototypes": PROTOTYPES,
    "head": HEAD,
    "evaluate": REPORTS / "metrics.json",
    "atlas": ATLAS,
    "export": BUNDLE,
}


def run_stage(name: str, body: Callable[[Params], None], last: bool = False) -> None:
    """Runs one DVC stage: reads ``params.yaml``, opens its MLflow run, and calls ``body``.

    See `errors_for_people` for how it ends on a mistake.
    """
    from pipelines.params import load_params  # brings torch, timm and ONNX, which `register` does without

    signal.signal(signal.SIGTERM, _terminate)
    start = time.perf_counter()
    with errors_for_people(name):
        params = load_params()
        with stage_run(name, params, last, OUTPUTS):
            body(params)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            log_metrics(name, {"seconds": time.perf_counter() - start, "peak_rss_mb": peak})


@contextmanager
def errors_for_people(name: str) -> Iterator[None]:
    """A mistake that a person can mend ends the process with one sentence and exit status 1."""
    try:
        yield
    except CSRError as error:
        sys.exit(f"{name}: {error}")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
