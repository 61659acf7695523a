"""τ as the reasoner's answers tell it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from csr.bundle.format import Bundle
from serving.engines import OrtEngine
from serving.models.in_service import Model
from serving.models.temperature import class_probabilities, temperature


class Table:
    """A reasoner whose logits are the answers, times a factor, and whose temperature is known."""

    def __init__(self, known: float, factor: float, task: str) -> None:
        self.known, self.factor, self.task = known, factor, task

    def run_reasoner(
        self, patches: np.ndarray, outputs: Any, *, answers: np.ndarray, **_: Any
    ) -> dict[str, np.ndarray]:
        logits = self.factor * answers
        said = class_probabilities(logits, self.known, self.task == "multilabel")
        return {"logits": logits.astype(np.float32), "probabilities": said.astype(np.float32)}


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("known", [0.05, 0.7, 1.0, 3.3])
@pytest.mark.parametrize("factor", [0.01, 1.0, 20.0])
def test_a_known_temperature_is_found(task: Any, known: float, factor: float) -> None:
    about: Any = SimpleNamespace(task=task, height=2, width=2, concepts=tuple("abcd"), patch_width=3)
    engine: Any = Table(known, factor, task)
    logits = np.linspace(-4, 3, 8) * factor
    expected = class_probabilities(logits, known, task == "multilabel")
    found = class_probabilities(logits, temperature(engine, about), task == "multilabel")
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_a_model_without_an_opinion_has_some_temperature() -> None:
    about: Any = SimpleNamespace(task="multiclass", height=2, width=2, concepts=tuple("abcd"), patch_width=3)
    engine: Any = Table(2.0, 0.0, "multiclass")
    assert temperature(engine, about) == 1.0


def test_probabilities_are_the_reasoners(bundle: Bundle) -> None:
    engine = OrtEngine(bundle)
    golden = bundle.golden()
    tensors = {name: golden[name] for name in ("importance", "answers", "places", "absent_weight")}
    said = engine.run_reasoner(engine.encode(golden["image"]), ["logits", "probabilities"], **tensors)
    found = Model(bundle, engine, "1").probabilities(said["logits"].astype(np.float64))
    np.testing.assert_allclose(found, said["probabilities"], atol=1e-6)
