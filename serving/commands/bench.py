"""``csr bench bundle``: the best threads and batch for a bundle on this machine, written into the configuration."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from csr.bundle.format import Bundle
from csr.errors import BundleError, ConfigError
from serving.deploy.config import EngineConfig, ReplicaConfig, load_config
from serving.deploy.merging import write_settings
from serving.engines.measuring import (
    BATCHES,
    Figure,
    Setting,
    best_setting,
    measure_settings,
    thread_counts,
)
from serving.engines.ort import OrtEngine


def main(arguments: Sequence[str]) -> None:
    """Measures a bundle's encoder, prints a table and the best settings, and writes them if told where.

    Raises:
        CSRError: the bundle, the machine or the configuration is not what is needed.
    """
    parser = argparse.ArgumentParser(prog="csr bench", description="Measures on this machine.")
    what = parser.add_subparsers(dest="what", required=True)
    bundle = what.add_parser("bundle", help="a bundle's encoder, by threads and batch")
    bundle.add_argument("bundle", type=Path, help="the folder")
    bundle.add_argument("--out", type=Path, help="configuration to write the best settings into; made if it is missing")
    bundle.add_argument("--budget", type=float, default=60.0, help="seconds to measure for (60)")
    bundle.add_argument("--cores", type=int, help="that one replica may have (all, shared by the replicas of --out)")
    given = parser.parse_args(arguments)
    _bench_bundle(given.bundle, given.out, given.budget, given.cores)


def _bench_bundle(path: Path, out: Path | None, budget: float, cores: int | None) -> None:
    engine, replicas = EngineConfig(), ReplicaConfig()
    if out is not None and out.exists():
        config = load_config(out)
        engine, replicas = config.engine, config.replicas
    if engine.kind == "triton":
        raise ConfigError(
            f"{out}: engine.kind is triton, whose threads are set when its repository is built "
            "(python -m serving.engines.triton --threads); name a configuration with kind ort, or none"
        )
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores is not None and not 1 <= cores <= here:
        raise ConfigError(f"--cores: {cores} is not from 1 to {here}, what this process may use")
    cores = cores or max(1, here // replicas.most)
    bundle = Bundle.open(path)
    settings = [Setting("cpu", threads, images) for threads in thread_counts(cores) for images in BATCHES]
    if _has_gpu(bundle):
        settings += [Setting("cuda", 1, images) for images in BATCHES]
    about = bundle.manifest
    print(f"{about.backbone} at {about.side}×{about.side} in {about.precision}, ONNX Runtime {ort.__version__}")
    figures = measure_settings(bundle, settings, budget)
    print(_table(figures))
    best = best_setting(figures)
    written: dict[str, dict[str, str | int | float]] = {
        "engine": {"threads": best.threads, "device": best.device},
        "encoder_batch": {"images": best.images},
    }
    if best.device == "cuda" and replicas.gpus == 0:
        written["replicas"] = {"gpus": 1}  # else Ray hides it
    said = ", ".join(f"{part}.{key}: {value}" for part, keys in written.items() for key, value in keys.items())
    print(f"best for one replica on {cores} core{'s' if cores > 1 else ''}: {said}")
    if out is not None:
        write_settings(out, written, {"model": {"bundle": str(path)}})
        print(f"written to {out}")


def _has_gpu(bundle: Bundle) -> bool:
    """Whether CUDA can be used; the wheel says that it can on machines without a GPU, too, so it is tried."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    ort.set_default_logger_severity(4)  # what goes wrong is said below, in a sentence
    try:
        OrtEngine(bundle, 1, "cuda").close()
    except BundleError as error:
        print(f"without a GPU: {error}")
        return False
    finally:
        ort.set_default_logger_severity(2)
    return True


def _table(figures: Sequence[Figure]) -> str:
    lines = ["device  threads  batch  ms/batch  images/s  spread"]
    for each in figures:
        about = each.setting
        lines.append(
            f"{about.device:6}  {about.threads:7}  {about.images:5}  {each.seconds * 1e3:8.2f}  "
            f"{each.images_per_second:8.1f}  {each.spread:5.0%}"
        )
    return "\n".join(lines)
