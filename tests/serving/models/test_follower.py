"""What is in service follows the registry: swaps drop nothing, failures change nothing, every change is on record."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from csr.bundle.champion import Champion
from csr.bundle.format import MANIFEST, Bundle, Manifest, write_manifest
from csr.data.digests import file_digest
from serving.access.roles import Role
from serving.core.dataplane import DataPlane
from serving.deploy.service import Service
from serving.errors import NotReadyError, ServingError
from serving.models.in_service import _position
from tests.serving.conftest import add, altered_copy, client_of, interact, make_service, stripes

POLL_S = 0.1


def another(bundle: Bundle, folder: Path, **changes: Any) -> Bundle:
    """A bundle with the same graphs and another manifest, as it lies on disk."""
    shutil.copytree(bundle.path, folder)
    (folder / MANIFEST).unlink()
    return Bundle(folder, write_manifest(folder, **contents(replace(bundle.manifest, **changes))))


def contents(manifest: Manifest) -> dict[str, Any]:
    """What `write_manifest` does not find out by itself."""
    return {key: value for key, value in vars(manifest).items() if key not in ("format", "files")}


class Registry:
    """A registry in a file, with a bundle a version."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.client.create_registered_model("csr")
        self._experiment = self.client.create_experiment(
            "test", artifact_location=uri.removeprefix("sqlite:///") + ".d"
        )

    def add(self, bundle: Path) -> str:
        from mlflow.entities import LoggedModelStatus

        logged = self.client.create_logged_model(self._experiment, name="csr")
        self.client.log_model_artifacts(logged.model_id, str(bundle))
        self.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        version = self.client.create_model_version("csr", f"models:/{logged.model_id}", model_id=logged.model_id)
        return str(version.version)

    def point(self, alias: str, version: str) -> None:
        self.client.set_registered_model_alias("csr", alias, version)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    # Registering asks MLflow's process-wide store for the model too; whoever set that one goes before the variable.
    mlflow.set_tracking_uri(uri)
    yield Registry(uri)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the variable decides again


@pytest.fixture
def serve(registry: Registry, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def start(name: str = "state", model: Any = None, **sections: Any) -> Service:
        folder = tmp_path / name
        model = {
            "bundle": None,
            "alias": "champion",
            "registry": {"uri": registry.uri, "poll_s": POLL_S, "folder": str(folder / "bundles")},
        } | (model or {})
        services.append(make_service(Path("unused"), folder, model=model, **sections))
        return services[-1]

    yield start
    for service in services:
        service.close()


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def served(service: Service) -> str:
    return service.models.champion.version


def test_nothing_is_ready_until_a_version_is_champion(serve: Any, registry: Registry, bundle: Bundle) -> None:
    version = registry.add(bundle.path)
    service = serve()
    with pytest.raises(NotReadyError, match="alias points at nothing yet"):
        service.check_ready()
    registry.point("champion", version)
    wait_for(lambda: not service.models.refused)
    service.check_ready()
    champion = service.models.champion
    assert (champion.version, champion.digest) == (version, bundle.digest)


def test_a_swap_and_a_rollback_drop_nothing_and_are_on_record(
    serve: Any, registry: Registry, bundle: Bundle, sample: bytes, tmp_path: Path
) -> None:
    second = another(bundle, tmp_path / "second", code_revision="second")
    versions = [registry.add(bundle.path), registry.add(second.path)]
    registry.point("champion", versions[0])
    service = serve()
    digest = add(service.plane, sample).digest
    stop, answers, failures = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(interact(service.plane, digest, rejected=["mass"]).model.version)
            except ServingError as error:
                failures.append(error)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for version in (versions[1], versions[0]):
        registry.point("champion", version)
        wait_for(lambda version=version: served(service) == version)
        seen = len(answers)
        wait_for(lambda seen=seen: len(answers) > seen + 20)
        assert answers[-1] == version
    stop.set()
    for asker in askers:
        asker.join(20)
    assert failures == []
    assert set(answers) == set(versions)
    history = service.catalogue.models().history
    assert [change.digest for change in history] == [bundle.digest, second.digest, bundle.digest]
    assert history[1].previous_digest == bundle.digest
    assert service.store.ledger.verify().faults == ()
    for row in service.store.ledger.entries("interaction"):
        assert row["body"]["version"] == ("1" if row["bundle"] == bundle.digest else "2")


def test_replicas_put_a_change_on_record_once(serve: Any, registry: Registry, bundle: Bundle) -> None:
    registry.point("champion", registry.add(bundle.path))
    first, second = serve(), serve()
    assert served(first) == served(second) == "1"
    assert len(first.catalogue.models().history) == 1


def test_a_version_that_was_altered_is_refused_and_the_old_one_stays(
    serve: Any, registry: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    registry.point("champion", registry.add(bundle.path))
    service = serve()
    bad = registry.add(altered_copy(bundle, tmp_path / "bad"))
    registry.point("champion", bad)
    wait_for(lambda: "champion" in service.models.refused)
    assert "digest differs" in service.models.refused["champion"]
    assert served(service) == "1"
    service.check_ready()
    good = registry.add(another(bundle, tmp_path / "good", code_revision="good").path)
    registry.point("champion", good)
    wait_for(lambda: served(service) == good)
    assert service.models.refused == {}


def test_a_version_whose_golden_case_fails_is_refused(
    serve: Any, registry: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    registry.point("champion", registry.add(bundle.path))
    service = serve()
    folder = another(bundle, tmp_path / "wrong").path
    golden = dict(np.load(folder / "golden.npz"))
    golden["expected_logits"] = golden["expected_logits"] + 1
    np.savez(folder / "golden.npz", **golden)
    (folder / MANIFEST).unlink()
    write_manifest(folder, **contents(bundle.manifest))
    registry.point("champion", registry.add(folder))
    wait_for(lambda: "champion" in service.models.refused)
    assert "golden case" in service.models.refused["champion"]
    assert served(service) == "1"


def test_a_registry_that_is_gone_changes_nothing(
    serve: Any, registry: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    registry.point("champion", registry.add(bundle.path))
    service = serve()
    (tmp_path / "mlflow.db").write_bytes(b"this is no database any more")
    wait_for(lambda: "champion" in service.models.refused)
    assert "MLflow" in service.models.refused["champion"]
    service.check_ready()


def test_a_folder_that_is_replaced_takes_over(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.path, folder)
    service = make_service(folder, tmp_path / "state", model={"bundle": str(folder), "registry": {"poll_s": POLL_S}})
    second = another(bundle, tmp_path / "second", code_revision="second")
    shutil.rmtree(folder)
    second.path.rename(folder)
    wait_for(lambda: service.models.champion.digest == file_digest(folder / MANIFEST))
    service.close()


# --- challengers


def shadows(service: Service) -> list[dict[str, Any]]:
    return list(service.store.ledger.entries("shadow"))


def test_a_shadow_answers_for_the_record_only(
    serve: Any, registry: Registry, bundle: Bundle, sample: bytes, tmp_path: Path
) -> None:
    second = another(bundle, tmp_path / "second", code_revision="second")
    registry.point("champion", registry.add(bundle.path))
    registry.point("challenger", registry.add(second.path))
    service = serve(challenger={"alias": "challenger"})
    study = add(service.plane, sample)
    answer = interact(service.plane, study.digest, rejected=["mass"])
    assert study.model.digest == answer.model.digest == bundle.digest
    wait_for(lambda: len(shadows(service)) == 2)
    plain, touched = shadows(service)
    assert plain["bundle"] == touched["bundle"] == second.digest
    assert touched["body"]["request"]["rejected"] == ["mass"]
    assert touched["body"]["before"] == touched["body"]["after"]  # the same graphs say the same
    service.models.challenge_with(None)
    interact(service.plane, study.digest)
    service.shadow.close()
    assert len(shadows(service)) == 2


def test_a_share_of_the_studies_is_the_challenger_s_at_every_replica(
    serve: Any, registry: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    second = another(bundle, tmp_path / "second", code_revision="second")
    registry.point("champion", registry.add(bundle.path))
    registry.point("challenger", registry.add(second.path))
    trial = {"alias": "challenger", "mode": "weighted", "share": 0.5}
    replicas = [serve(challenger=trial), serve(challenger=trial)]
    files = [stripes(value) for value in range(0, 240, 12)]
    answered = [[add(replica.plane, file).model.digest for file in files] for replica in replicas]
    assert answered[0] == answered[1]
    assert {bundle.digest, second.digest} == set(answered[0])


def test_shares_are_what_they_say() -> None:
    places = [_position(f"{n:064x}") for n in range(4000)]
    assert min(places) >= 0 and max(places) < 1
    for share in (0.05, 0.5, 0.9):
        assert np.mean(np.array(places) < share) == pytest.approx(share, abs=0.03)


def test_a_trial_ends_when_its_alias_is_gone(serve: Any, registry: Registry, bundle: Bundle) -> None:
    version = registry.add(bundle.path)
    registry.point("champion", version)
    registry.point("challenger", version)
    service = serve(challenger={"alias": "challenger"})
    assert service.models.challenge is not None
    registry.client.delete_registered_model_alias("csr", "challenger")
    wait_for(lambda: service.models.challenge is None)
    assert [(change.role, change.digest) for change in service.catalogue.models().history][-1] == ("challenger", "")


def test_a_shadow_that_cannot_keep_up_drops_questions(plane: DataPlane, service: Service, sample: bytes) -> None:
    from serving.core.shadow import Shadow
    from serving.models.in_service import Challenge

    service.models.challenge_with(Challenge(service.models.champion, "shadow"))
    shadow = Shadow(service.models, service.store.ledger, service.telemetry, waiting=1)
    plane._shadow = shadow
    blocked = threading.Event()
    shadow._worker.submit(blocked.wait, 20)
    digest = add(plane, sample).digest
    for _ in range(5):
        interact(plane, digest)
    assert b"csr_challenger_dropped_total 5.0" in service.telemetry.page()[0]
    blocked.set()
    shadow.close()
    assert len(shadows(service)) == 1


def test_an_administrator_rolls_back_by_the_rules_of_the_pipeline(
    serve: Any, registry: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    """Both move the alias on one record: what the server rolled back, ``csr models history`` shows."""
    alias = Champion(registry.client, "csr")
    versions = [registry.add(another(bundle, tmp_path / name, code_revision=name).path) for name in ("a", "b")]
    for version in versions:
        alias.promote(version, "better", "dr-lee")
    service = serve()
    wait_for(lambda: served(service) == versions[1])
    with client_of(service, Role.ADMIN) as client:
        answer = client.post("/v1/models/rollback", json={"reason": "worse on rounds"})
        assert answer.status_code == 200, answer.text
        assert answer.json().items() >= {"from": versions[1], "to": versions[0]}.items()
        wait_for(lambda: served(service) == versions[0])
        again = client.post("/v1/models/rollback", json={"reason": "once more"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "no_rollback")
        assert "has no version before" in again.json()["error"]["message"]
    last = alias.history()[-1]
    assert (str(last), last.kind, last.reason, last.by) == (
        f"{versions[1]} → {versions[0]}",
        "rollback",
        "worse on rounds",
        "key:tester-admin",
    )


def test_a_registry_that_is_gone_is_503_and_names_no_host(
    serve: Any, registry: Registry, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    Champion(registry.client, "csr").promote(registry.add(bundle.path), "first", "dr-lee")
    service = serve()

    def gone(*_: object) -> None:
        raise ConnectionError("registry.example.org refused")

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", gone)
    with client_of(service, Role.ADMIN) as client:
        answer = client.post("/v1/models/rollback", json={"reason": "worse"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "registry_unavailable")
    assert "example" not in answer.text


def test_another_alias_is_not_moved(serve: Any, registry: Registry, bundle: Bundle) -> None:
    registry.point("ward", registry.add(bundle.path))
    service = serve(model={"alias": "ward"})
    with client_of(service, Role.ADMIN) as client:
        answer = client.post("/v1/models/rollback", json={"reason": "worse"})
    assert answer.status_code == 409 and "'ward'" in answer.json()["error"]["message"]
