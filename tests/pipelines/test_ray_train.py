"""Training on real Ray workers: two learn what one learns, and an injected crash resumes in the same MLflow run."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import mlflow
import pytest
import torch

from csr.errors import TrainingError
from csr.training.callbacks import Callbacks, SilentCallbacks, State
from csr.training.concepts import ConceptTrainingConfig
from csr.training.runtime import world_size
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


def crash_once(prepared: Path, marker: str, config: ConceptTrainingConfig, callbacks: Callbacks) -> State:
    """Dies like a lost node at the end of the second epoch, once; by then Ray holds the first one's checkpoint."""
    original = callbacks.epoch

    def epoch(metrics: dict, state: object) -> None:
        if metrics["epoch"] == 1 and not Path(marker).exists():
            time.sleep(5)  # the controller takes note of a reported checkpoint when it next polls
            Path(marker).touch()
            os._exit(1)
        original(metrics, state)

    callbacks.epoch = epoch  # type: ignore[method-assign]
    state = fit(prepared, config=config, callbacks=callbacks)
    return state | {"world_size": world_size()}


def test_two_workers_train_survive_a_crash_and_log_one_run(tiny_run: TinyRun, store: None, tmp_path: Path) -> None:
    from csr.network.concept_model import ConceptModelConfig
    from csr.network.rebuild import concept_model_from_checkpoint
    from csr.training.concepts import train_concepts

    config = ConceptTrainingConfig(ConceptModelConfig("regnetx_002"), epochs=3, batch_size=16, precision="float32")
    function = partial(crash_once, marker=str(tmp_path / "crashed"), config=config)
    params = TrainParams(workers=2, threads=1, max_failures=1)
    with mlflow.start_run() as run:
        checkpoint, history = train("concepts", function, config, [tiny_run.folder / "prepared"], params)
    assert (tmp_path / "crashed").exists()
    assert checkpoint["world_size"] == 2
    alone = SilentCallbacks()
    train_concepts(tiny_run.data, config, alone)
    for expected, found in zip(alone.history, history, strict=True):
        assert found["epoch"] == expected["epoch"]
        for name in ("train_loss", "val_loss"):  # the number of threads alone moves them by 2e-3
            assert found[name] == pytest.approx(expected[name], rel=1e-2)
    assert torch.isfinite(concept_model_from_checkpoint(checkpoint).to_maps.weight).all()
    client = mlflow.MlflowClient()
    assert len(client.search_runs([run.info.experiment_id])) == 1
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "concepts.train_loss")]
    assert steps == [0, 1, 2]


def fail(callbacks: Callbacks) -> State:
    raise TrainingError("concepts: the loss became nan in epoch 0; lower concepts.learning_rate")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_training_reaches_the_person_as_its_own_sentence(store: None, workers: int) -> None:
    with pytest.raises(TrainingError, match="the loss became nan in epoch 0"):
        train("concepts", fail, TrainParams(), [], TrainParams(workers=workers, max_failures=0))
