"""Runs the comparison's stages side by side on Ray: one task a system and seed, one core each, or one GPU where any is.

    python -m pipelines.comparison.fan_out [--trials | STAGE ...]

Without stages all of `pipelines/comparison/dvc.yaml` is reproduced, each stage as soon as those that it needs are
done: a system waits for its shared backbone. One that fails keeps back those that need it, no others. Each task is one
``dvc repro --single-item``, so what has not changed is not repeated and the result is the same as that of a plain
``dvc repro``. A stage of trials takes no core: its trials are tasks on the same cluster. ``--trials`` runs these stages
alone, with the backbone that some of them start from. ``RAY_ADDRESS`` names a cluster, whose nodes must share this
folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from graphlib import TopologicalSorter
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


def needs() -> dict[str, set[str]]:
    """All stages by name, and the names of those whose outputs each takes in."""
    with Repo() as repo:
        graph = repo.index.graph
        own = {stage: stage.name for stage in repo.index.stages if Path(stage.path) == Path(FILE).resolve()}
    return {name: {own[other] for other in graph.successors(stage) if other in own} for stage, name in own.items()}


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


def run_stages(
    graph: Mapping[str, AbstractSet[str]], wanted: AbstractSet[str], start: Callable[[str], Any], trials_at_once: int
) -> tuple[list[str], list[str]]:
    """Runs each stage as soon as all that it needs are done, of trials at most so many at a time.

    Args:
        graph: of `needs`.
        wanted: names of the stages to run; others are taken to be done.
        start: starts a stage by its name and returns Ray's reference to what `reproduce` returns.

    Returns:
        Names of stages that failed, and of those that were not run since they need these.
    """
    order = TopologicalSorter(graph)
    order.prepare()
    ready: list[str] = []
    running: dict[Any, str] = {}
    done, failed = set[str](), list[str]()
    while True:
        while new := order.get_ready():
            ready += [name for name in new if name in wanted]
            order.done(*(name for name in new if name not in wanted))
        for name in list(ready):
            trials = sum(TRIALS in other for other in running.values())
            if TRIALS not in name or trials < trials_at_once:
                ready.remove(name)
                running[start(name)] = name
        if not running:
            return failed, sorted(wanted - done - set(failed))
        (finished,), _ = ray.wait(list(running))
        name, status, output = ray.get(finished)
        del running[finished]
        if status:
            failed.append(name)
            print(output, file=sys.stderr, flush=True)
        else:
            done.add(name)
            order.done(name)
        to_go = len(wanted) - len(done) - len(failed)
        print(f"{name}: {'failed' if status else 'done'}, {to_go} to go", flush=True)


def main() -> None:
    """The command line; see the module's docstring."""
    graph = needs()
    if sys.argv[1:] == ["--trials"]:
        resting = f"class_backbone@{load_comparison().comparison.seeds[0]}"
        wanted = {name for name in graph if TRIALS in name or name == resting}
    elif given := set(sys.argv[1:]):  # stages, or all of a matrix by its name
        known = {name: {name, name.partition("@")[0]} for name in graph}
        if unknown := given.difference(*known.values()):
            sys.exit(f"fan_out: {FILE} has no stage {min(unknown)!r}")
        wanted = {name for name, names in known.items() if given & names}
    else:
        wanted = set(graph)
    connect()  # makes MLflow's store, before many tasks want to at once
    ray.init(address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    cluster = ray.get_runtime_context().gcs_address
    task = ray.remote(num_cpus=1, num_gpus=gpus)(reproduce)
    unhindered = ray.remote(num_cpus=0)(reproduce)  # its trials take the cores
    places = int(ray.cluster_resources()["GPU" if gpus else "CPU"])
    trials_at_once = max(1, places // max(1, load_comparison().comparison.trials))  # each stage of trials fills as many

    def start(name: str) -> Any:
        return (unhindered if TRIALS in name else task).remote(name, str(Path.cwd()), cluster)

    failed, left_out = run_stages(graph, wanted, start, trials_at_once)
    ray.shutdown()
    if failed:
        kept_back = f"; not run, since they need these: {', '.join(left_out)}" if left_out else ""
        sys.exit(f"fan_out: failed: {', '.join(failed)}{kept_back}")


if __name__ == "__main__":
    main()
