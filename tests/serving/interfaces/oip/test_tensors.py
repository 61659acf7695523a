"""Codec properties: what is encoded comes back the same, in either form, and nothing else passes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.errors import InvalidInferenceError
from serving.interfaces.oip import ModelSpec, TensorSpec
from serving.interfaces.oip.tensors import Tensor, check_parameters, decode, encode, requested
from serving.interfaces.oip.wire import AnswerForm, read_request

PIXELS = TensorSpec("pixels", "UINT8", (-1, 2, 3))
WEIGHTS = TensorSpec("weights", "FP32", (-1, 2))
SPEC = ModelSpec("model", "1", ("1",), "test", (PIXELS, WEIGHTS), (PIXELS, WEIGHTS))
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, np.ndarray]:
    size = draw(st.integers(1, 32))
    return {
        "pixels": draw(arrays.arrays(np.uint8, (size, 2, 3))),
        "weights": draw(arrays.arrays(np.float32, (size, 2), elements=FINITE)),
    }


def body(values: dict[str, np.ndarray], binary: set[str], nested: bool, **extra: Any) -> tuple[bytes, int]:
    """A request as a client writes it, by means that share nothing with the code under test."""
    described, parts = [], []
    for name, array in values.items():
        each: dict[str, Any] = {"name": name, "shape": list(array.shape)}
        each["datatype"] = {"u": "UINT8", "f": "FP32"}[array.dtype.kind]
        if name in binary:
            parts.append(array.tobytes())
            each["parameters"] = {"binary_data_size": array.nbytes}
        else:
            each["data"] = array.tolist() if nested else array.flatten().tolist()
        described.append(each)
    text = json.dumps({"inputs": described, **extra}).encode()
    return text + b"".join(parts), len(text)


@given(batches(), st.sets(st.sampled_from(["pixels", "weights"])), st.booleans(), st.booleans())
def test_a_request_comes_back_as_it_was_written(values, binary: set[str], nested: bool, pixels_last: bool):
    if pixels_last:
        values = dict(reversed(values.items()))
    _, tensors = read_request(*body(values, binary, nested))
    found = decode(SPEC, tensors)
    for name, array in values.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(batches(), st.booleans(), st.sets(st.sampled_from(["pixels", "weights"])))
def test_an_answer_comes_back_as_it_was_computed(values, every: bool, other: set[str]):
    """Which tensors are binary: all or none, but for those that say the other themselves."""
    outputs = [{"name": name, "parameters": {"binary_data": not every} if name in other else {}} for name in values]
    flags = {"parameters": {"binary_data_output": every}, "outputs": outputs, "id": "7"}
    request, _ = read_request(*body(values, set(), False, **flags))
    content, length = AnswerForm(SPEC, request, len(values["pixels"])).write("1", values)
    answer = json.loads(content[:length])
    assert (answer["id"], answer["model_version"], answer["model_name"]) == ("7", "1", "model")
    at = length if length is not None else len(content)
    for each in answer["outputs"]:
        array = values[each["name"]]
        if (each["name"] in other) != every:
            size = each["parameters"]["binary_data_size"]
            found = np.frombuffer(content[at : at + size], array.dtype).reshape(each["shape"])
            at += size
        else:
            assert "parameters" not in each
            found = np.array(each["data"], array.dtype).reshape(each["shape"])
        np.testing.assert_array_equal(found, array)
    assert at == len(content)


@given(arrays.arrays(np.float32, (3, 2), elements=FINITE), st.booleans())
def test_bytes_are_little_endian_and_in_row_major_order(array: np.ndarray, turned: bool):
    kept = np.asfortranarray(array) if turned else array.astype(">f4")
    assert encode(WEIGHTS, kept) == array.astype("<f4").tobytes("C")


def weights(content: Any, shape: tuple[int, ...] = (1, 2), datatype: str = "FP32") -> Tensor:
    return Tensor("weights", datatype, shape, content)


PLAIN = Tensor("pixels", "UINT8", (1, 2, 3), bytes(6))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (weights([0.5, True]), "data holds bool where only FP32 numbers may be"),
        (weights(["1", 2.0]), "data holds str"),
        (weights([None, 2.0]), "data holds NoneType"),
        (weights([[1.0], 2.0]), "not nested as its shape"),
        (weights([[1.0, 2.0], [3.0]]), "not nested as its shape"),
        (weights([[[1.0, 2.0]]]), "not nested as its shape"),
        (weights([[[1.0], [2.0]]]), "data holds list"),
        (weights([1.0, [2.0]]), "data holds list"),
        (weights([1.0]), "data has 1 numbers"),
        (weights([]), "data has 0 numbers"),
        (weights([1e39, 0.0]), "beyond 32-bit floats"),
        (weights([10**400, 0.0]), "out of the range of FP32"),
        (weights([float("nan"), 0.0]), "holds NaN"),
        (weights(np.array([np.inf, 0], "<f4").tobytes()), "holds NaN, infinity"),
        (weights(np.array([0, np.nan], "<f4").tobytes()), "holds NaN"),
        (weights(bytes(9)), r"has 9 bytes, but shape \[1, 2\] of FP32 is 8"),
        (weights(bytes(8), datatype="FP64"), "datatype is 'FP64', but it takes FP32"),
        (weights(["a", "b"], datatype="BYTES"), "datatype is 'BYTES', but it takes FP32"),
        (weights(bytes(8), (2,)), r"shape is \[2\], but it takes \[batch, 2\]"),
        (weights(bytes(8), (2, 1)), r"shape is \[2, 1\]"),
        (weights(bytes(8), (1, -2)), r"shape is \[1, -2\]"),
        (weights(b"", (0, 2)), "the batch is 0, but may be 1 to 32"),
        (weights(b"", (-1, 2)), "the batch is -1"),
        (weights(bytes(8 * 33), (33, 2)), "the batch is 33"),
        (weights(b"", (2**62, 2)), "the batch is 4611686018427387904"),
        (weights(b"", (10**200, 2)), "the batch is 1000"),
        (weights(bytes(16), (2, 2)), "differ in their first axis, the batch .pixels 1, weights 2."),
        (Tensor("x" * 5000, "FP32", (1, 2), bytes(8)), "input 'xxxx.*…: is unknown; model takes pixels, weights"),
        (PLAIN, "input 'pixels': is given twice"),
    ],
)
def test_a_tensor_that_the_model_cannot_take_is_refused_with_its_reason(tensor: Tensor, reason: str):
    with pytest.raises(InvalidInferenceError, match=reason) as refused:
        decode(SPEC, [PLAIN, tensor])
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("number", [-1, 256, 10**30, 1.0])
def test_pixels_are_whole_numbers_of_a_byte(number: float):
    with pytest.raises(InvalidInferenceError, match=r"out of the range of UINT8|data holds float"):
        decode(SPEC, [Tensor("pixels", "UINT8", (1, 2, 3), [0, 0, 255, 0, 0, number]), weights([0.0, 0.0])])


def test_a_missing_input_is_named():
    with pytest.raises(InvalidInferenceError, match="'weights': is missing; model takes pixels, weights"):
        decode(SPEC, [PLAIN])


def test_outputs_are_those_asked_for_in_that_order_or_all():
    assert requested(SPEC, ["weights", "pixels"]) == [WEIGHTS, PIXELS]
    assert requested(SPEC, []) == [PIXELS, WEIGHTS]
    for names, reason in ((["none"], "is unknown; model gives pixels"), (["pixels", "pixels"], "asked for twice")):
        with pytest.raises(InvalidInferenceError, match=reason):
            requested(SPEC, names)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shared_memory_region", "memory of this machine is not for clients"),
        ("classification", "choose the largest"),
        ("sequence_id", "a request depends on no other one"),
        ("priority", "leave it out"),
    ],
)
def test_a_parameter_that_would_be_ignored_is_refused(name: str, reason: str):
    check_parameters("input 'image'", ["binary_data_size"], ["binary_data_size"])
    with pytest.raises(InvalidInferenceError, match=f"input 'image': parameter '{name}' is not supported; .*{reason}"):
        check_parameters("input 'image'", ["binary_data_size", name], ["binary_data_size"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=150)
@given(st.lists(JSON, max_size=6), st.sampled_from(["UINT8", "FP32"]))
def test_any_json_is_either_taken_exactly_or_refused(data: list[Any], datatype: str):
    spec = TensorSpec("given", datatype, (-1, 2))
    model = ModelSpec("model", "1", ("1",), "test", (spec,), (spec,))
    try:
        found = decode(model, [Tensor("given", datatype, (1, 2), data)])["given"]
    except InvalidInferenceError:
        return
    flat = data[0] if isinstance(data[0], list) else data
    assert found.tolist() == [[float(np.float32(each)) if datatype == "FP32" else each for each in flat]]
