"""The alias ``champion``: walked back and not toggled, and no move of it off the record, wherever a process dies."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from csr.errors import BundleError, ConfigError
from pipelines.champion import CHAMPION, PROMOTIONS, Move, champion, history, promote, rollback, settle
from pipelines.registry import main
from pipelines.tracking import MODEL_NAME, connect


class CrashError(BaseException):
    """The process is gone."""


class Crashing:
    """A client that dies at one of its calls that change something, before or after the call has its effect."""

    CHANGES = ("create_experiment", "create_run", "set_registered_model_alias", "set_terminated")

    def __init__(self, client: MlflowClient, at: int, after: bool) -> None:
        self._client = client
        self._left = at
        self._after = after

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if name not in self.CHANGES:
            return call

        def changing(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise CrashError
            value = call(*arguments, **named)
            if self._left == 0:
                raise CrashError
            return value

        return changing


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with four versions, of which none is the champion: making one takes ten seconds."""
    file = tmp_path_factory.mktemp("registry") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        client = connect()
    client.create_registered_model(MODEL_NAME)
    for _ in range(4):
        client.create_model_version(MODEL_NAME, str(file.parent / "bundle"))
    return file


@pytest.fixture
def client(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    shutil.copy(registry, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return connect()


def targets(client: MlflowClient) -> list[str]:
    return [move.target for move in history(client)]


def records(client: MlflowClient) -> list[str]:
    """The states of all records, open and failed ones too."""
    experiment = client.get_experiment_by_name(PROMOTIONS)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return sorted(run.info.status for run in runs)


def test_rolling_back_walks_back(client: MlflowClient) -> None:
    for version in "123":
        promote(client, version, "better")
    assert rollback(client, "bad").target == "2"
    assert rollback(client, "bad too").target == "1"
    with pytest.raises(BundleError, match="no version before 1 to go back to"):
        rollback(client, "and on")
    assert champion(client) == "1"
    assert targets(client) == ["1", "2", "3", "2", "1"]


def test_what_was_rolled_back_does_not_come_again(client: MlflowClient) -> None:
    for version in "123":
        promote(client, version, "better")
    rollback(client, "3 is bad")
    promote(client, "4", "mended")
    assert [rollback(client, "x").target, rollback(client, "x").target] == ["2", "1"]


def test_a_version_that_was_promoted_again_has_what_came_before_it(client: MlflowClient) -> None:
    for version in "121":
        promote(client, version, "x")
    assert [rollback(client, "x").target, rollback(client, "x").target] == ["2", "1"]
    with pytest.raises(BundleError, match="no version before"):
        rollback(client, "x")


def test_promoting_what_stands_is_no_move(client: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    promote(client, "1", "first")
    promote(client, "2", "second")
    assert promote(client, "2", "once more") is None
    assert promote(client, "02", "by another spelling") is None
    main(["promote", "2", "--reason", "again"])
    assert "champion: stands at version 2 already; nothing was moved" in capsys.readouterr().out
    assert targets(client) == ["1", "2"] and records(client) == ["FINISHED"] * 2
    assert rollback(client, "back").target == "1"


@pytest.mark.parametrize("reason", ["", " ", "\n\t"])
def test_an_empty_reason_is_refused(client: MlflowClient, reason: str) -> None:
    promote(client, "1", "first")
    promote(client, "2", "second")
    for command in (["promote", "3"], ["rollback"]):
        with pytest.raises(ConfigError, match="--reason: is empty"):
            main([*command, "--reason", reason])
    assert champion(client) == "2" and records(client) == ["FINISHED"] * 2


def test_there_is_nothing_to_go_back_to(client: MlflowClient) -> None:
    with pytest.raises(BundleError, match="points at no version"):
        rollback(client, "x")
    promote(client, "1", "first")
    with pytest.raises(BundleError, match="no version before 1"):
        rollback(client, "x")
    with pytest.raises(BundleError, match="version '9' of 'csr' does not exist"):
        promote(client, "9", "x")
    assert targets(client) == ["1"]


def test_a_move_by_other_means_is_part_of_the_way(client: MlflowClient) -> None:
    promote(client, "1", "first")
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, "3")
    assert rollback(client, "who was that?") == Move("rollback", "3", "1", "who was that?", history(client)[-1].by)
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, "4")
    promote(client, "2", "x")
    assert rollback(client, "x").target == "4"


def test_the_version_before_is_gone(client: MlflowClient) -> None:
    promote(client, "1", "x")
    promote(client, "2", "x")
    client.delete_model_version(MODEL_NAME, "1")
    with pytest.raises(BundleError, match="version '1' of 'csr' does not exist"):
        rollback(client, "x")
    assert champion(client) == "2"


def test_a_registry_that_does_not_answer_is_not_an_empty_one(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    promote(client, "1", "x")

    def fail(*_: Any) -> None:
        raise MlflowException("down")

    monkeypatch.setattr(client, "get_model_version_by_alias", fail)
    with pytest.raises(BundleError, match=r"MLflow does not answer \(down\)"):
        promote(client, "2", "x")


def test_the_record_is_in_the_order_of_the_moves_whatever_the_clock_says(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([2000.0, 1000.0, 1000.0])
    monkeypatch.setattr("csr.bundle.champion.time", SimpleNamespace(time=lambda: next(seconds)))
    for version in "123":
        promote(client, version, "x")
    assert targets(client) == ["1", "2", "3"]


# The first move also makes the experiment; the second opens its record, moves the alias and closes the record.
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moves", [0, 2])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_crash_at_any_point_leaves_no_move_off_the_record(
    client: MlflowClient, moves: int, at: int, after: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in "12"[:moves]:
        promote(client, version, "x")
    before = champion(client)
    crashed = False
    try:
        promote(Crashing(client, at, after), "3", "cut short")  # type: ignore[arg-type]
    except CrashError:
        crashed = True
    assert crashed == (at <= (3 if moves else 4))
    stands = champion(client)
    main(["history"])  # any command settles
    told = capsys.readouterr().err
    assert "RUNNING" not in records(client)
    assert champion(client) == stands in (before, "3")
    assert (targets(client)[-1:] or [None])[-1] == stands
    assert ("was made" in told) <= (stands == "3") and ("was not made" in told) <= (stands == before)
    assert settle(client) == []
    promote(client, "4", "and on")
    assert history(client)[-1].source == (stands or "")
    assert champion(client) == "4"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_crash_while_rolling_back(client: MlflowClient, at: int, after: bool) -> None:
    for version in "123":
        promote(client, version, "x")
    with pytest.raises(CrashError):
        rollback(Crashing(client, at, after), "cut short")  # type: ignore[arg-type]
    stands = champion(client)
    assert stands == ("2" if (at, after) >= (2, True) else "3")
    assert rollback(client, "x").target == str(int(stands) - 1)
    assert targets(client)[-1] == champion(client) and "RUNNING" not in records(client)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_while_settling(client: MlflowClient, after: bool) -> None:
    promote(client, "1", "x")
    with pytest.raises(CrashError):
        promote(Crashing(client, 2, True), "2", "cut short")  # type: ignore[arg-type]
    with pytest.raises(CrashError):
        settle(Crashing(client, 1, after))  # type: ignore[arg-type]
    settle(client)
    assert targets(client) == ["1", "2"] and records(client) == ["FINISHED"] * 2
