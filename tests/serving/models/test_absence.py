"""The absent level of each concept, asked of the reasoner, against the constants that its graph holds."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from csr.bundle.format import Bundle
from serving.core.dataplane import DataPlane
from serving.deploy.service import Service
from serving.models.absence import absent_levels
from tests.serving.conftest import CountingEngine, add


def constants(bundle: Bundle) -> np.ndarray:
    """The K×M absent scores, as the graph holds them."""
    graph = onnx.load(bundle.path / "reasoner.onnx").graph
    held = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    return next(value for name, value in held.items() if name.endswith("absent_scores"))


def test_absent_levels_are_the_graph_s_own(bundle: Bundle, engine: CountingEngine, service: Service) -> None:
    expected = constants(bundle)
    alive = service.models.champion.explainer.alive
    assert alive.any(1).all()
    np.testing.assert_allclose(
        absent_levels(engine, bundle.manifest, alive), np.where(alive, expected, -1).max(1), atol=1e-6
    )


def test_a_concept_without_a_live_prototype_has_no_level(bundle: Bundle, engine: CountingEngine) -> None:
    alive = np.ones((len(bundle.manifest.concepts), bundle.manifest.per_concept), bool)
    alive[0] = False
    assert absent_levels(engine, bundle.manifest, alive)[0] == -1


def test_maps_come_with_the_level_of_each_concept(plane: DataPlane, service: Service, sample: bytes) -> None:
    maps = plane.maps(add(plane, sample).digest)
    assert maps.absent == service.models.champion.absent and len(maps.absent) == len(maps.concepts)
