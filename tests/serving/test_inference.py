"""Inference with tensors while the models in service change."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csr.bundle import Bundle
from csr.interaction import Interaction, interaction_tensors
from serving.engines import OrtEngine
from serving.errors import EngineUnavailableError
from serving.inference import asking
from serving.models import Model
from serving.oip import ENSEMBLE
from tests.serving.conftest import CALLER, make_service


class Waiting(OrtEngine):
    """The real engine, which encodes when it is told to."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.began, self.go = threading.Event(), threading.Event()

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.began.set()
        assert self.go.wait(20)
        return super().encode(images)


def test_what_began_before_a_roll_out_ends_with_the_bundle_it_began_with(bundle: Bundle, tmp_path: Path) -> None:
    about = bundle.manifest
    image = np.zeros((1, about.channels, about.side, about.side), np.uint8)
    given = interaction_tensors(
        [Interaction()], about.concepts, about.per_concept, about.side, about.height, about.width
    )
    given["absent_weight"] = given["absent_weight"][:, None]
    engine = Waiting(bundle)
    service = make_service(bundle.path, tmp_path, engine)

    def infer() -> tuple[str, dict[str, np.ndarray]]:
        asking.set(CALLER)
        return service.inference.infer(ENSEMBLE, None, {"image": image, **given}, ["logits"])

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(infer)
        assert engine.began.wait(20)
        other = replace(bundle, manifest=replace(about, code_revision="other"))
        service.models.crown(Model(other, OrtEngine(bundle), "2"))
        gc.collect()
        engine.go.set()
        version, values = asked.result(20)
    assert version == "1" and np.isfinite(values["logits"]).all()
    (entry,) = service.store.ledger.entries("inference")
    assert (entry["bundle"], entry["body"]["version"]) == (bundle.digest, "1")
    gc.collect()
    with pytest.raises(EngineUnavailableError):  # nobody holds the model any more
        engine.encode(image)
    service.close()
