"""Runs the comparison's stages side by side on Ray: one task a system and seed, one core each, or one GPU where any is.

    python -m pipelines.comparison.fan_out [--trials | STAGE ...]

Without stages all of `pipelines/comparison/dvc.yaml` is reproduced, level by level, since a system waits for its
shared backbone. Each task is one ``dvc repro --single-item``, so what has not changed is not repeated and the result is
the same as that of a plain ``dvc repro``. A stage of trials takes no core: its trials are tasks on the same cluster.
``--trials`` runs these stages alone, with the backbone that some of them start from. ``RAY_ADDRESS`` names a cluster,
whose nodes must share this folder.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from dvc.repo import Repo

from pipelines.comparison.common import load_comparison
from pipelines.tracking import connect

FILE = "pipelines/comparison/dvc.yaml"
BUSY = ("Unable to acquire lock", "is busy")  # what DVC says while another stage reads or writes its own files
TRIALS = "_trials"  # in the names of their stages
PATIENCE = 600  # seconds that a stage waits for such files


def levels() -> list[list[str]]:
    """Names of all stages; those of a level wait for earlier levels only."""
    with Repo() as repo:
        graph = repo.index.graph
        own = [stage for stage in repo.index.stages if Path(stage.path) == Path(FILE).resolve()]

    @functools.cache
    def level(stage: Any) -> int:
        return max((level(other) + 1 for other in graph.successors(stage) if other in own), default=0)

    grouped: dict[int, list[str]] = defaultdict(list)
    for stage in own:
        grouped[level(stage)].append(stage.name)
    return [grouped[number] for number in sorted(grouped)]


def reproduce(name: str, folder: str, cluster: str) -> tuple[str, int, str]:
    """Runs one stage in ``folder``; waits while DVC's files are in use. Returns name, exit status and output.

    Args:
        cluster: address of Ray's, for stages that start tasks of their own.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", f"{FILE}:{name}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "RAY_ADDRESS": cluster}
    give_up = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        busy = any(sign in done.stdout for sign in BUSY)
        if done.returncode == 0 or not busy or time.monotonic() > give_up:
            return name, done.returncode, done.stdout
        time.sleep(2)


def run_level(names: list[str], start: Callable[[str], Any], at_once: int) -> list[str]:
    """Runs stages side by side, of trials at most so many, and returns the names of those that failed."""
    queue, failed = [name for name in names if TRIALS in name], []
    open_tasks = [start(name) for name in [*queue[:at_once], *(name for name in names if TRIALS not in name)]]
    del queue[:at_once]
    while open_tasks:
        (ready,), open_tasks = ray.wait(open_tasks)
        name, status, output = ray.get(ready)
        if TRIALS in name and queue:
            open_tasks.append(start(queue.pop(0)))
        print(f"{name}: {'done' if status == 0 else 'failed'}, {len(open_tasks) + len(queue)} to go", flush=True)
        if status:
            failed.append(name)
            print(output, file=sys.stderr, flush=True)
    return failed


def main() -> None:
    """The command line; see the module's docstring."""
    order = levels()
    if sys.argv[1:] == ["--trials"]:
        resting = f"class_backbone@{load_comparison().comparison.seeds[0]}"
        order = [[name for name in level if TRIALS in name or name == resting] for level in order]
    elif given := set(sys.argv[1:]):  # stages, or all of a matrix by its name
        order = [[name for name in level if given & {name, name.partition("@")[0]}] for level in order]
        if unknown := given - {each for level in order for name in level for each in (name, name.partition("@")[0])}:
            sys.exit(f"fan_out: {FILE} has no stage {min(unknown)!r}")
    connect()  # makes MLflow's store, before many tasks want to at once
    ray.init(address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    cluster = ray.get_runtime_context().gcs_address
    task = ray.remote(num_cpus=1, num_gpus=gpus)(reproduce)
    waiting = ray.remote(num_cpus=0)(reproduce)  # its trials take the cores
    places = int(ray.cluster_resources()["GPU" if gpus else "CPU"])
    at_once = max(1, places // max(1, load_comparison().comparison.trials))  # stages of trials, which fill them

    def start(name: str) -> Any:
        return (waiting if TRIALS in name else task).remote(name, str(Path.cwd()), cluster)

    failed: list[str] = []
    for names in order:
        failed += run_level(names, start, at_once)
        if failed:
            break
    ray.shutdown()
    if failed:
        sys.exit(f"fan_out: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
