"""``model.py`` of Triton's Python backend: runs the ``model.onnx`` beside it with ONNX Runtime on the CPU.

Copied as it is into every version of a repository of the ``python`` form, so it imports nothing of this project: it
lives in the server's Python, which knows only numpy (below 2: with numpy 2 the backend answers empty tensors) and
onnxruntime. It serves any model with a batch axis; names come from the configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # only inside the server


class TritonPythonModel:
    """One session. Triton calls ``initialize`` once and ``execute`` with the requests it batched."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        options.inter_op_num_threads = 1
        # One thread is slower with larger batches: what it computes no longer fits the processor's cache.
        self._at_once = 4 if options.intra_op_num_threads == 1 else config["max_batch_size"]
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [each["name"] for each in config["input"]]
        self._outputs = [each["name"] for each in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs all requests together, for the outputs that any of them wants, and divides the answer."""
        parts = [self._tensors(request) for request in requests]
        feeds = {name: np.concatenate([part[name] for part in parts]) for name in self._inputs}
        wanted = {name for request in requests for name in request.requested_output_names()}
        names = [name for name in self._outputs if name in wanted]
        ends = np.cumsum([len(part[self._inputs[0]]) for part in parts])
        runs = [
            self._session.run(names, {name: feed[start : start + self._at_once] for name, feed in feeds.items()})
            for start in range(0, ends[-1], self._at_once)
        ]
        values = [np.concatenate(each) for each in zip(*runs, strict=True)]
        divided = zip(*(np.split(value, ends[:-1]) for value in values), strict=True)
        return [_response(names, arrays) for arrays in divided]

    def _tensors(self, request: Any) -> dict[str, np.ndarray]:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}


def _response(names: list[str], arrays: tuple[np.ndarray, ...]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(names, arrays, strict=True)])
