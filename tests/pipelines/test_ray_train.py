"""Training on real Ray workers: two learn what one learns, though one is killed or its machine leaves."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from csr.data.prepared import PreparedSet
from csr.errors import TrainingError
from csr.network.concept_model import ConceptModelConfig
from csr.network.rebuild import concept_model_from_checkpoint
from csr.training.callbacks import Callbacks, SilentCallbacks, State
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.runtime import own_part, rank, world_size
from pipelines.concepts import fit
from pipelines.params import TrainParams
from pipelines.tracking import connect
from pipelines.training import train
from tests.conftest import TinyRun


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # the default store is relative to this folder, and Ray's workers run in folders of their own
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for the workers Ray starts
    connect()


class KilledOnce:
    """Stage 1 whose last worker is killed in the middle of the second epoch, once, when Ray holds the first one's
    checkpoint. Writes down what each attempt draws.

    Args:
        folder: of the notes.
        kill: whether the worker kills itself; otherwise it waits for somebody who does.
    """

    def __init__(self, folder: Path, kill: bool = True) -> None:
        self.folder, self.kill = folder, kill

    def __call__(self, prepared: Path, config: ConceptTrainingConfig, callbacks: Callbacks) -> State:
        track, attempt = callbacks.track, time.time_ns()

        def watched(batches: Iterable, total: int, description: str) -> Iterator:
            epoch = description.split()[-1].partition("/")[0]
            for step, batch in enumerate(track(batches, total, description)):
                rows, _ = batch
                if epoch == "2" and step == total // 2 and rank() == world_size() - 1 and world_size() > 1:
                    self._die()
                part = rows[own_part(len(rows))]
                note = {"attempt": attempt, "workers": world_size(), "epoch": epoch, "rows": part.tolist()}
                with (self.folder / f"drawn-{os.getpid()}.jsonl").open("a") as file:
                    file.write(json.dumps(note) + "\n")
                yield batch

        callbacks.track = watched  # type: ignore[method-assign]
        return fit(prepared, config=config, callbacks=callbacks)

    def _die(self) -> None:
        if (self.folder / "dying").exists():
            return
        time.sleep(5)  # the controller takes note of a reported checkpoint when it next polls
        (self.folder / "dying").touch()
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    def drawn(self) -> pd.DataFrame:
        """A row a batch and worker."""
        lines = [line for file in self.folder.glob("drawn-*.jsonl") for line in file.read_text().splitlines()]
        return pd.DataFrame([json.loads(line) for line in lines])


def check_samples(killed: KilledOnce, rows: np.ndarray) -> None:
    """What the weights have learned from: each study once an epoch, but for the rest that no batch holds."""
    drawn = killed.drawn()
    for _, epoch in drawn.groupby("epoch"):
        # attempts of the two workers begin within milliseconds; those before and after the kill lie seconds apart
        last = epoch[epoch["attempt"] > epoch["attempt"].max() - 5e9]
        seen = np.concatenate([np.array(each, int) for each in last["rows"]])
        assert len(seen) == len(set(seen)) == len(rows) // 16 * 16
        assert set(seen) <= set(rows)
    assert drawn.groupby("epoch")["attempt"].nunique()["2"] > drawn.groupby("epoch")["attempt"].nunique()["1"]


def check_history(history: list[dict[str, float]], alone: list[dict[str, float]]) -> None:
    assert [each["epoch"] for each in history] == [each["epoch"] for each in alone]
    for expected, found in zip(alone, history, strict=True):
        for name in ("train_loss", "val_loss"):  # the number of threads alone moves them by 2e-3
            assert found[name] == pytest.approx(expected[name], rel=1e-2)


CONFIG = ConceptTrainingConfig(ConceptModelConfig("regnetx_002"), epochs=3, batch_size=16, precision="float32")


def alone(data: PreparedSet) -> list[dict[str, float]]:
    """The history of the training in one process."""
    callbacks = SilentCallbacks()
    train_concepts(data, CONFIG, callbacks)
    return callbacks.history


def test_two_workers_train_what_one_does_though_one_is_killed_in_mid_epoch(
    tiny_run: TinyRun, store: None, tmp_path: Path
) -> None:
    killed = KilledOnce(tmp_path)
    params = TrainParams(workers=2, threads=1, max_failures=1)
    with mlflow.start_run() as run:
        checkpoint, history = train(
            "concepts", partial(killed, config=CONFIG), CONFIG, [tiny_run.folder / "prepared"], params
        )
    assert (tmp_path / "dying").exists()
    assert set(killed.drawn()["workers"]) == {2}
    check_samples(killed, tiny_run.data.collection.rows("train"))
    check_history(history, alone(tiny_run.data))
    assert torch.isfinite(concept_model_from_checkpoint(checkpoint).to_maps.weight).all()
    client = mlflow.MlflowClient()
    assert len(client.search_runs([run.info.experiment_id])) == 1
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "concepts.train_loss")]
    assert steps == [0, 1, 2]


@pytest.mark.faults
def test_training_goes_on_with_fewer_workers_when_a_machine_leaves(
    tiny_run: TinyRun, store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = KilledOnce(tmp_path, kill=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)

        def leave() -> None:
            while not (tmp_path / "dying").exists():
                time.sleep(0.2)
            cluster.remove_node(second, allow_graceful=False)

        leaving = threading.Thread(target=leave, daemon=True)
        leaving.start()
        params = TrainParams(workers=2, least_workers=1, threads=1, max_failures=2)
        _, history = train("concepts", partial(killed, config=CONFIG), CONFIG, [tiny_run.folder / "prepared"], params)
        leaving.join(10)
    finally:
        ray.shutdown()
        cluster.shutdown()
    drawn = killed.drawn()
    assert set(drawn[drawn["epoch"] == "1"]["workers"]) == {2}
    assert set(drawn[drawn["epoch"] == "3"]["workers"]) == {1}
    check_samples(killed, tiny_run.data.collection.rows("train"))
    check_history(history, alone(tiny_run.data))


def fail(callbacks: Callbacks) -> State:
    raise TrainingError("concepts: the loss became nan in epoch 0; lower concepts.learning_rate")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_training_reaches_the_person_as_its_own_sentence(store: None, workers: int) -> None:
    with pytest.raises(TrainingError, match="the loss became nan in epoch 0"):
        train("concepts", fail, TrainParams(), [], TrainParams(workers=workers, max_failures=0))
