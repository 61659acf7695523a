"""Inference with tensors while the models in service change, or what they run on fails."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from csr.bundle.format import Bundle
from csr.interaction.corrections import Interaction, interaction_tensors
from serving.deploy.service import Service
from serving.engines import OrtEngine
from serving.errors import EngineUnavailableError, NotReadyError, UnknownModelError
from serving.interfaces.oip import ENSEMBLE
from serving.interfaces.oip.inference import asking
from serving.models.in_service import Model
from tests.serving.conftest import CALLER, client_of, make_service


class Failing(OrtEngine):
    """The real engine, until what it runs on is gone."""

    gone = False

    def ready(self) -> None:
        if self.gone:
            raise EngineUnavailableError("nobody answers")


def one_study(bundle: Bundle) -> dict[str, np.ndarray]:
    made = bundle.manifest
    tensors = interaction_tensors([Interaction()], made.concepts, made.side, made.height, made.width)
    tensors["absent_weight"] = tensors["absent_weight"][:, None]
    return {"image": np.zeros((1, made.channels, made.side, made.side), np.uint8), **tensors}


def roll_out(service: Service, bundle: Bundle, version: str) -> None:
    other = replace(bundle, manifest=replace(bundle.manifest, code_revision=f"of version {version}"))
    service.models.crown(Model(other, OrtEngine(bundle), version))
    gc.collect()


def test_a_request_ends_with_the_bundle_it_began_with(bundle: Bundle, tmp_path: Path) -> None:
    asking.set(CALLER)
    engine = OrtEngine(bundle)
    service = make_service(bundle.path, tmp_path, engine)
    models = service.inference()  # a request began; its body is still on the way
    roll_out(service, bundle, "2")

    assert models.spec(ENSEMBLE).version == "1"
    version, values = models.infer(ENSEMBLE, "1", one_study(bundle), ["logits"])
    assert version == "1" and np.isfinite(values["logits"]).all()
    (entry,) = service.store.ledger.entries("inference")
    assert (entry["bundle"], entry["body"]["version"]) == (bundle.digest, "1")

    assert service.inference().spec(ENSEMBLE).version == "2"
    with pytest.raises(UnknownModelError, match="served are 2"):
        service.inference().spec(ENSEMBLE, "1")
    engine.ready()
    del models
    gc.collect()
    with pytest.raises(EngineUnavailableError):  # nobody holds version 1 any more
        engine.encode(one_study(bundle)["image"])
    service.close()


def test_without_a_model_the_reason_is_said(tmp_path: Path) -> None:
    service = make_service(tmp_path / "none", tmp_path / "state")
    with pytest.raises(NotReadyError, match="none"):
        service.inference()
    service.close()


def test_readiness_is_the_engines_too(bundle: Bundle, tmp_path: Path) -> None:
    engine = Failing(bundle)
    service = make_service(bundle.path, tmp_path, engine)
    paths = (
        "/health/ready",
        "/v2/health/ready",
        f"/v2/models/{ENSEMBLE}/ready",
        f"/v2/models/{ENSEMBLE}/versions/1/ready",
    )
    with client_of(service) as client:
        assert_statuses(client, paths, 200)
        engine.gone = True
        assert_statuses(client, paths, 503)
        assert "nobody answers" in client.get("/v2/health/ready").json()["error"]
        assert client.get(f"/v2/models/{ENSEMBLE}").status_code == 200
        engine.gone = False
        assert_statuses(client, paths, 200)
    service.close()


def assert_statuses(client: TestClient, paths: tuple[str, ...], status: int) -> None:
    assert {path: client.get(path).status_code for path in paths} == dict.fromkeys(paths, status)
