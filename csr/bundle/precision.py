"""The body of an encoder, image → features and patches, in half precision or in int8, by ONNX Runtime's own tools.

float16     weights and activations in half precision: half the file, and what a GPU is fastest in. Processors without
            such arithmetic, which are most, compute it in float32 and gain nothing.
int8        weights and activations as whole numbers, for processors. A tensor x is kept as

                q = clamp(round(x / s) + z, 0, 255)        (Jacob et al. 2018, arXiv 1712.05877, equation 1)

            Each channel of a weight has an s of its own. s and z of an activation come from its range on training
            images: the mean over batches of the least and the largest value there, which a single bright pixel moves
            less than the range of all. The nodes are ONNX's QuantizeLinear and DequantizeLinear around float ones, so
            that the graph means the same to whoever runs it, and is fast where the pair is known.

Weights have seven bits, not eight: processors without VNNI add two products in 16 bits, which eight would overflow, and
a bundle must say the same wherever it is served.

What lies before the first layer with weights stays in float32 in int8, and what follows the last, which makes patches
unit vectors; so do these two layers. In float16 only the norm does, whose squares might be too large.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import NodeProto, compose
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

PIXELS = "pixels"  # what a guard's graph calls the image, which the body's graph has taken the name of
_LAYERS = ("Conv", "MatMul", "Gemm")
_WITHOUT_WEIGHTS = ("Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool")
_BATCH = 8  # calibration images whose range counts as one


def halve(body: Path, file: Path) -> None:
    """Writes a float32 body in half precision; it takes and gives what it took and gave."""
    kept = [*DEFAULT_OP_BLOCK_LIST, "ReduceL2"]
    half = convert_float_to_float16(onnx.load(body), keep_io_types=True, op_block_list=kept)
    once = {node.name: node for node in half.graph.node}  # a tensor that two of the kept read is cast twice
    del half.graph.node[:]
    half.graph.node.extend(once.values())
    ordered = ONNXModel(half)
    ordered.topological_sort()  # casts come last
    onnx.save(ordered.model, file)


def quantise(body: Path, images: np.ndarray, file: Path) -> None:
    """Writes a float32 body in int8.

    Args:
        images: uint8 N×C×S×S, training images to take the ranges from.
    """
    with TemporaryDirectory(prefix="csr-int8-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(body, prepared, skip_symbolic_shape=True)  # with the optimisations that hold everywhere
        model = onnx.load(prepared)
        weights = {each.name for each in model.graph.initializer}
        layers = [place for place, node in enumerate(model.graph.node) if _is_layer(node, weights)]
        between = model.graph.node[layers[0] + 1 : layers[-1]]
        inner = [node.name for node in between if node.op_type in _WITHOUT_WEIGHTS or _is_layer(node, weights)]
        quantize_static(
            prepared,
            file,
            _Batches(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS, *_WITHOUT_WEIGHTS],
            nodes_to_quantize=inner,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
        )


def calibration_digest(images: np.ndarray) -> str:
    """SHA-256 of the pixels that ranges were taken from, in hexadecimal digits."""
    return hashlib.sha256(images.tobytes()).hexdigest()


def join_guard(body: Path, guard: Path, file: Path) -> None:
    """Writes the encoder's graph: what a body says, and a guard says of it.

    Args:
        body: image → fine, patches. guard: `PIXELS`, fine, patches → fit_scores.
    """
    first, second = onnx.load(body), compose.add_prefix(onnx.load(guard), "guard/")
    shared = {"fine": "guard/fine", "patches": "guard/patches"}
    second.ir_version = first.ir_version
    for model in (first, second):  # opsets of domains that no node is of
        used = {node.domain for node in model.graph.node}
        kept = [each for each in model.opset_import if each.domain in used]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    both = compose.merge_models(first, second, list(shared.items()), outputs=["patches", "guard/fit_scores"])
    graph = both.graph
    del graph.input[1:]
    for node in graph.node:
        node.input[:] = ["image" if name == f"guard/{PIXELS}" else name for name in node.input]
        node.output[:] = ["fit_scores" if name == "guard/fit_scores" else name for name in node.output]
    graph.output[1].name = "fit_scores"
    onnx.checker.check_model(both, full_check=True)
    onnx.save(both, file)


def _is_layer(node: NodeProto, weights: set[str]) -> bool:
    """Whether it has weights of its own; attention multiplies what it computes, enlarging has them on the left."""
    return node.op_type in _LAYERS and node.input[1] in weights


class _Batches(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._left: Iterator[np.ndarray] = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {"image": np.ascontiguousarray(batch)}
