"""A body in half precision or int8 is the same network, in the numbers that it claims to be in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from csr.bundle.onnx_export import export_body, export_guard
from csr.bundle.precision import calibration_digest, halve, join_guard, quantise
from tests.csr.bundle.test_onnx_export import images_of, make_csr
from tests.csr.synthetic import make_guard


@pytest.fixture(scope="module")
def bodies(tmp_path_factory) -> SimpleNamespace:
    folder, model = tmp_path_factory.mktemp("bodies"), make_csr(0)
    export_body(model, images_of(8, 2), folder / "float32.onnx")
    halve(folder / "float32.onnx", folder / "float16.onnx")
    quantise(folder / "float32.onnx", images_of(1, 12).numpy(), folder / "int8.onnx")
    guard = make_guard(model, images_of(5, 3))
    with torch.no_grad():
        export_guard(guard, images_of(8, 2), model.encoder.depths(images_of(8, 2)), folder / "guard.onnx")
    return SimpleNamespace(folder=folder, model=model, guard=guard)


def run(file, images: torch.Tensor, names=None) -> list[np.ndarray]:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(names, {"image": images.numpy()})


@pytest.mark.parametrize(("precision", "near"), [("float16", 0.005), ("int8", 0.1)])
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_another_precision_says_nearly_the_same_of_any_batch(bodies, precision, near, batch):
    images = images_of(batch, batch)
    with torch.no_grad():
        fine, patches = bodies.model.encoder.depths(images)
    own_fine, own_patches = run(bodies.folder / f"{precision}.onnx", images, ["fine", "patches"])
    assert (own_fine.dtype, own_patches.dtype) == (np.float32, np.float32)
    assert own_patches.shape == patches.shape
    assert 0 < np.abs(own_patches - patches.numpy()).mean() < near
    assert np.abs(own_fine - fine.numpy()).mean() < near * float(fine.abs().mean() + 1)
    np.testing.assert_allclose(np.linalg.norm(own_patches, axis=1), 1, atol=2e-3)


def test_half_precision_halves_the_weights_and_nothing_but_the_norm_is_in_float32(bodies):
    model = onnx.load(bodies.folder / "float16.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {each.data_type for each in model.graph.initializer}
    assert TensorProto.FLOAT16 in kinds and TensorProto.FLOAT not in kinds
    assert [node.op_type for node in model.graph.node].count("ReduceL2") == 1


def quantised_weights(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of the layer → whole numbers and scales, of layers whose weights are behind a DequantizeLinear."""
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in model.graph.node:
        maker = makers.get(node.input[1]) if node.op_type in ("Conv", "MatMul", "Gemm") else None
        if maker is not None and maker.input[0] in values:
            found[node.name] = (values[maker.input[0]], values[maker.input[1]])
    return found


def test_int8_weights_have_seven_bits_and_a_scale_a_channel(bodies):
    model = onnx.load(bodies.folder / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    found = quantised_weights(model)
    plain = onnx.load(bodies.folder / "float32.onnx")
    floats = {each.name: numpy_helper.to_array(each) for each in plain.graph.initializer}
    layers = [node.name for node in plain.graph.node if len(node.input) > 1 and node.input[1] in floats]
    layers = [name for name in layers if name.lower().startswith(("node_conv", "node_matmul", "node_gemm"))]
    assert set(layers[1:-1]) == set(found)  # all but the first and the last
    weights = {node.name: floats[node.input[1]] for node in plain.graph.node if node.name in found}
    for name, (whole, scale) in found.items():
        axis = 0 if whole.ndim == 4 else 1
        assert whole.dtype == np.int8 and np.abs(whole.astype(int)).max() <= 64, name
        assert scale.shape == (whole.shape[axis],), name
        each = scale.reshape([-1 if i == axis else 1 for i in range(whole.ndim)])
        assert (np.abs(whole * each - weights[name]) <= each * 0.51).all(), name  # rounded to the nearest step


def test_ranges_come_from_the_calibration_images(bodies, tmp_path):
    """Black images say nothing of bright ones: a range that was taken from them cuts off what is bright."""
    quantise(bodies.folder / "float32.onnx", np.zeros((8, 1, 32, 32), np.uint8), tmp_path / "dark.onnx")
    images = images_of(3, 4)
    with torch.no_grad():
        fine = bodies.model.encoder.depths(images)[0].numpy()
    right, wrong = (
        np.abs(run(file, images, ["fine"])[0] - fine).mean()
        for file in (bodies.folder / "int8.onnx", tmp_path / "dark.onnx")
    )
    assert right < 0.7 * wrong


def test_calibration_digests_tell_sets_apart():
    images = images_of(0, 3).numpy()
    assert calibration_digest(images) == calibration_digest(images.copy()) != calibration_digest(images[::-1])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_guard_joined_to_a_body_says_what_it_says_alone(bodies, tmp_path, precision):
    body, images = bodies.folder / f"{precision}.onnx", images_of(5, 3)
    fine, patches = (torch.tensor(each) for each in run(body, images, ["fine", "patches"]))
    join_guard(body, bodies.folder / "guard.onnx", tmp_path / "encoder.onnx")
    session = ort.InferenceSession(str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["image"]
    assert [each.name for each in session.get_outputs()] == ["patches", "fit_scores"]
    for batch in (1, 3):
        own, scores = session.run(None, {"image": images[:batch].numpy()})
        np.testing.assert_allclose(own, patches[:batch], atol=1e-5)
        expected = bodies.guard(images[:batch], fine[:batch], patches[:batch])
        np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
