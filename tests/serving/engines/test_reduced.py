"""A bundle whose encoder is in int8 or half precision is served as any other, by each engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from csr.bundle.format import COMPARED_OUTPUTS, INTERACTION_INPUTS, Bundle
from csr.bundle.runtime import GOLDEN_TOLERANCE, golden_gap
from csr.errors import BundleError
from serving.engines import Engine, OrtEngine, TritonEngine
from serving.engines.triton import ENCODER, REASONER, build_repository
from tests.serving.engines.triton.server import triton_server


def golden_gap_of(engine: Engine, bundle: Bundle) -> float:
    golden = bundle.golden()
    encoded = engine.run_encoder(golden["image"])
    tensors = {name: golden[name] for name in INTERACTION_INPUTS}
    return golden_gap(golden, encoded | engine.run_reasoner(encoded["patches"], COMPARED_OUTPUTS, **tensors))


@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_runtime_serves_it(reduced_bundle: Bundle, threads: int) -> None:
    engine = OrtEngine(reduced_bundle, threads)
    engine.ready()
    assert golden_gap_of(engine, reduced_bundle) <= GOLDEN_TOLERANCE
    images = np.resize(reduced_bundle.golden()["image"], (9, *reduced_bundle.golden()["image"].shape[1:]))
    together, alone = engine.encode(images), np.concatenate([engine.encode(images[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(together, alone, atol=1e-3)


def test_one_that_says_something_else_is_refused(reduced_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = reduced_bundle.golden()
    off = golden["expected_logits"] + 1.5 * golden["tolerance_logits"]
    monkeypatch.setattr(Bundle, "golden", lambda self: golden | {"expected_logits": off})
    with pytest.raises(BundleError, match="this machine does not compute what was exported"):
        OrtEngine(reduced_bundle)


def test_triton_carries_it(reduced_bundle: Bundle, tmp_path: Path) -> None:
    """The repository's file is the bundle's, its configuration what that takes, and the answer the golden case."""
    repository = tmp_path / "repository"
    build_repository(reduced_bundle, repository, 1, "python")
    written = repository / ENCODER / "1" / "model.onnx"
    assert written.read_bytes() == (reduced_bundle.path / "encoder.onnx").read_bytes()
    graph = ort.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    assert [each.type for each in graph.get_inputs()] == ["tensor(uint8)"]
    assert {each.type for each in graph.get_outputs()} == {"tensor(float)"}
    with triton_server(repository, [ENCODER, REASONER], tmp_path / "server.log") as running:
        engine = TritonEngine(reduced_bundle, running.grpc, 1)
        engine.ready()
        assert golden_gap_of(engine, reduced_bundle) <= GOLDEN_TOLERANCE
        engine.close()
