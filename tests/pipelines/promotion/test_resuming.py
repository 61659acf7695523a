"""A retraining that dies at any of its changes to the registry, or is killed at any time, and is run again: never a
wrong champion.

What is computed is not at stake here: ``dvc repro`` has made the bundle, and the verdicts are given.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from csr.bundle.format import MANIFEST, Bundle
from csr.data.prepared import PreparedSet
from csr.errors import CSRError
from csr.evaluation.bootstrap import Interval
from pipelines import retrain as module
from pipelines.champion import history, promote
from pipelines.promotion.decisions import DECISIONS
from pipelines.promotion.verdicts import Verdict
from pipelines.registry import register
from pipelines.tracking import connect
from tests.pipelines.test_champion import CrashError, Crashing

CHANGES = (
    *Crashing.CHANGES,
    "delete_registered_model",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "create_model_version",
    "log_artifacts",
    "log_metric",
    "set_tag",
    "set_model_version_tag",
    "update_model_version",
)


class CrashingAnywhere(Crashing):
    CHANGES = CHANGES


def bundle_with(tiny: Any, folder: Path, revision: str) -> Bundle:
    """The tiny bundle as another code revision would have written it."""
    shutil.copytree(tiny.path, folder)
    manifest = json.loads((folder / MANIFEST).read_text()) | {"code_revision": revision}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def start(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry whose champion is version 1, and a candidate in build/bundle."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        client = connect()
        promote(client, register(bundle_with(tiny_run.bundle, folder / "first", "first")), "first")
    bundle_with(tiny_run.bundle, folder / "build/bundle", "second")
    shutil.copytree(tiny_run.folder / "prepared", folder / "data/prepared")
    (folder / "infra").mkdir()
    (folder / "infra/promotion.yaml").write_text("gates: [{measure: macro_f1, margin: 0.5}]")
    return folder


@pytest.fixture
def project(start: Path, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which ``dvc repro`` has been."""
    folder = tmp_path / "project"
    shutil.copytree(start, folder, ignore=shutil.ignore_patterns("mlruns"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    for name, given in computed(tiny_run.data).items():
        monkeypatch.setattr(module, name, given)
    judged(monkeypatch, True)
    return folder


def computed(data: PreparedSet) -> dict[str, Any]:
    """What stands in for all that takes long: names of the module, and what they are."""
    judging = SimpleNamespace(name="set", digest="d" * 64, data=data)
    return {
        "subprocess": SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=0, stdout=b"")),
        "load_params": lambda: SimpleNamespace(data=SimpleNamespace(feedback=None)),
        "next_set": lambda *_: judging,
        "check_unseen": lambda *_: None,
    }


@pytest.fixture
def client(project: Path) -> MlflowClient:
    return connect()


def verdict(passed: bool) -> Verdict:
    return Verdict("macro F1", "test", "more", Interval(0.8, 0.7, 0.9), 0.8, None, None, 0.5, passed, "")


def judged(monkeypatch: pytest.MonkeyPatch, passed: bool, calls: list[int] | None = None) -> None:
    def judge(*_: Any) -> list[Verdict]:
        if calls is not None:
            calls.append(1)
        return [verdict(passed)]

    monkeypatch.setattr(module, "judge", judge)


def retrain_with(client: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    for place in ("pipelines.retrain.connect", "pipelines.registry.connect"):
        monkeypatch.setattr(place, lambda: client)
    return module.retrain()


def bury(client: MlflowClient) -> None:
    """The process that held locks is gone: here it is the one that runs the tests."""
    for lock in client.search_registered_models("name LIKE 'csr-lock-%'"):
        client.set_registered_model_tag(lock.name, "by", "here:99999999")


def stands(client: MlflowClient) -> str:
    return str(client.get_model_version_by_alias("csr", "champion").version)


def states(client: MlflowClient) -> list[str]:
    experiment = client.get_experiment_by_name(DECISIONS)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run.data.tags.get("outcome", "open") for run in runs]


@pytest.mark.parametrize("passed", [True, False])
def test_a_crash_after_any_change_and_again(
    project: Path, passed: bool, monkeypatch: pytest.MonkeyPatch, start: Path
) -> None:
    judged(monkeypatch, passed)
    at = 0
    while True:
        at += 1
        shutil.copy(start / "mlflow.db", f"{at}.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd() / f'{at}.db'}")
        client = connect()
        try:
            retrain_with(CrashingAnywhere(client, at, after=True), monkeypatch)
        except CrashError:
            crashed = True
            bury(client)
        else:
            crashed = False
        early = stands(client)
        assert early == "1" or (passed and states(client) == ["passed"])  # never before it is decided
        done = retrain_with(client, monkeypatch)
        assert done in (("promoted", "unchanged") if passed else ("refused",))
        assert stands(client) == ("2" if passed else "1")
        assert [str(move) for move in history(client)] == ["none → 1", *(["1 → 2"] if passed else [])]
        assert states(client) == ["passed" if passed else "refused"]
        if not crashed:
            break
    assert at > 15  # it did go through all of them


def retrain_in(folder: Path, registry: str, passed: bool) -> None:
    """What a process of its own runs."""
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = registry
    for name, given in computed(PreparedSet.open(folder / "data/prepared")).items():
        setattr(module, name, given)
    module.judge = lambda *_: [verdict(passed)]
    module.retrain()


@pytest.mark.parametrize("passed", [True, False])
def test_killed_at_random_times_and_again(
    project: Path, passed: bool, monkeypatch: pytest.MonkeyPatch, start: Path
) -> None:
    """SIGKILL to a process of its own: nothing is cleaned up, its lock stays and its transaction is half."""
    judged(monkeypatch, passed)
    drawn, alone, unfinished = random.Random(0), 0.0, 0
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pipelines.retrain"])  # once, so that a process is all retraining
    for at in range(-1, 7):
        registry = f"sqlite:///{project / f'{at}.db'}"
        shutil.copy(start / "mlflow.db", f"{at}.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
        begun = time.monotonic()
        other = processes.Process(target=retrain_in, args=(project, registry, passed))
        other.start()
        other.join(drawn.uniform(0, alone) if at > 0 else 120)  # the first starts the server, the second tells how long
        assert at > 0 or other.exitcode == 0
        alone = time.monotonic() - begun if at == 0 else alone
        unfinished += other.exitcode is None
        other.kill()
        other.join()
        client = connect()
        assert stands(client) == "1" or (passed and states(client) == ["passed"])
        done = module.retrain()
        assert done in (("promoted", "unchanged") if passed else ("refused",))
        assert stands(client) == ("2" if passed else "1")
        assert [str(move) for move in history(client)] == ["none → 1", *(["1 → 2"] if passed else [])]
        assert states(client) == ["passed" if passed else "refused"]
    assert unfinished >= 4


def test_what_was_refused_is_not_judged_again(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    judged(monkeypatch, False, calls)
    assert [retrain_with(client, monkeypatch) for _ in range(3)] == ["refused"] * 3
    assert len(calls) == 1 and "refused" in Path("reports/promotion/promotion.md").read_text()
    Path("infra/promotion.yaml").write_text("gates: [{measure: macro_f1, margin: 0.6}]")
    judged(monkeypatch, True, calls)
    assert retrain_with(client, monkeypatch) == "promoted" and len(calls) == 2


def test_judging_that_fails_moves_nothing_and_counts_once(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise CSRError("the disk is full")

    monkeypatch.setattr(module, "judge", fail)
    for _ in range(2):
        with pytest.raises(CSRError, match="the disk is full"):
            retrain_with(client, monkeypatch)
    assert stands(client) == "1" and states(client) == ["open"]
    judged(monkeypatch, True)
    assert retrain_with(client, monkeypatch) == "promoted" and states(client) == ["passed"]


def test_two_feedback_sets_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "load_params", lambda: SimpleNamespace(data=SimpleNamespace(feedback=None)))
    for name in "ab":
        (tmp_path / "data/feedback" / name).mkdir(parents=True)
        (tmp_path / "data/feedback" / name / "manifest.json").write_text("{}")
    with pytest.raises(CSRError, match="holds several feedback sets, data/feedback/a, data/feedback/b"):
        module._feedback()
