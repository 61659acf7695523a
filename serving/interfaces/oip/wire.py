"""HTTP bodies of inference requests and answers: JSON alone, or JSON with binary tensors behind it.

In the second form the header ``Inference-Header-Content-Length`` says where the JSON ends; tensors with the parameter
``binary_data_size`` follow in the order in which the JSON names them, and nothing after the last.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import ValidationError

from serving.errors import InvalidInferenceError, TooLargeError, UnsupportedEncodingError
from serving.interfaces import strict_json
from serving.interfaces.oip.models import ModelSpec, TensorSpec
from serving.interfaces.oip.schemas import InferAnswer, InferRequest, InputTensor, OutputTensor
from serving.interfaces.oip.tensors import Tensor, check_parameters, encode, requested

MAX_JSON_NUMBERS = 1 << 21  # about 40 MB of text; binary answers have no such limit
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # "deflate" is the zlib format (RFC 9110)


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """A request body without its ``Content-Encoding``, never more of it than ``limit`` bytes.

    Raises:
        UnsupportedEncodingError: neither gzip nor deflate.
        TooLargeError: it is longer than that.
        InvalidInferenceError: it is damaged, cut off or followed by something.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOWS:
        raise UnsupportedEncodingError(f"Content-Encoding: {encoding[:100]!r} is neither 'gzip' nor 'deflate'")
    inflator = zlib.decompressobj(_WINDOWS[name])
    try:
        content = inflator.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidInferenceError(f"the body is not {name}, as Content-Encoding says it is") from None
    if len(content) > limit:
        raise TooLargeError(f"the inflated request is over this model's limit of {limit:,} bytes")
    if not inflator.eof or inflator.unused_data:
        raise InvalidInferenceError(f"the body's {name} stream is cut off or followed by other bytes")
    return content


def read_request(body: bytes, header_length: int | None) -> tuple[InferRequest, list[Tensor]]:
    """A request and its input tensors, not yet compared with a model.

    Args:
        body: the whole body, inflated.
        header_length: how many bytes of it are JSON; None: all.

    Raises:
        InvalidInferenceError: the body is not what the protocol describes, or asks for what is not done here.
    """
    if header_length is not None and header_length > len(body):
        raise InvalidInferenceError(
            f"Inference-Header-Content-Length: is {header_length}, but the body has {len(body):,} bytes"
        )
    text = body[:header_length]
    request = _parse(text)
    check_parameters("the request", request.parameters, ("binary_data_output",))
    for output in request.outputs:
        check_parameters(f"output {output.name!r}", output.parameters, ("binary_data",))
    rest = memoryview(body)[len(text) :]
    tensors = []
    for given in request.inputs:
        tensor, rest = _tensor(given, rest)
        tensors.append(tensor)
    if len(rest):
        raise InvalidInferenceError(f"the body has {len(rest):,} bytes more than its JSON and its binary tensors")
    return request, tensors


class AnswerForm:
    """Which outputs a request wants, and which of them as bytes.

    Raises:
        InvalidInferenceError: an unknown output, a flag that is none, or more numbers than are written as JSON.
    """

    def __init__(self, spec: ModelSpec, request: InferRequest, batch: int) -> None:
        self._spec = spec
        self._id = request.id
        self.outputs = requested(spec, [each.name for each in request.outputs])
        every = _flag("the request", request.parameters, "binary_data_output", False)
        flags = {each.name: _flag(each.name, each.parameters, "binary_data", every) for each in request.outputs}
        self._binary = {each.name: flags.get(each.name, every) for each in self.outputs}
        numbers = sum(batch * math.prod(each.shape[1:]) for each in self.outputs if not self._binary[each.name])
        if numbers > MAX_JSON_NUMBERS:
            raise InvalidInferenceError(
                f"outputs: {numbers:,} numbers as JSON are over the limit of {MAX_JSON_NUMBERS:,}; ask for binary "
                "data, fewer outputs or a smaller batch"
            )

    def write(self, version: str, values: Mapping[str, np.ndarray]) -> tuple[bytes, int | None]:
        """The body, and how much of it is JSON: None if all is."""
        tensors, parts = [], []
        for spec in self.outputs:
            array = values[spec.name]
            if self._binary[spec.name]:
                parts.append(encode(spec, array))
                tensors.append(_described(spec, array.shape, parameters={"binary_data_size": len(parts[-1])}))
            else:
                tensors.append(_described(spec, array.shape, data=array.ravel().tolist()))
        answer = InferAnswer(model_name=self._spec.name, model_version=version, id=self._id, outputs=tensors)
        text = answer.model_dump_json(exclude_none=True).encode()
        return b"".join([text, *parts]), len(text) if parts else None


def _parse(text: bytes) -> InferRequest:
    try:
        return InferRequest.model_validate(strict_json.parse(text))
    except json.JSONDecodeError as error:
        raise InvalidInferenceError(f"the body is no JSON: {error.msg}") from None
    except ValidationError as error:  # one sentence, and never the input: it may be a patient's
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        raise InvalidInferenceError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def _tensor(given: InputTensor, rest: memoryview) -> tuple[Tensor, memoryview]:
    """A tensor with its content, and the bytes that belong to those after it."""
    where = f"input {given.name!r}"
    check_parameters(where, given.parameters, ("binary_data_size",))
    size = given.parameters.get("binary_data_size")
    if (size is None) == (given.data is None):
        raise InvalidInferenceError(f"{where}: must have either 'data' or the parameter 'binary_data_size'")
    if given.data is not None:
        return Tensor(given.name, given.datatype, tuple(given.shape), given.data), rest
    if type(size) is not int or not 0 <= size <= len(rest):
        raise InvalidInferenceError(
            f"{where}: binary_data_size must be a whole number up to {len(rest):,}, the bytes left behind the JSON"
        )
    return Tensor(given.name, given.datatype, tuple(given.shape), rest[:size]), rest[size:]


def _flag(where: str, parameters: Mapping[str, object], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInferenceError(f"{where}: parameter {name!r} must be true or false")
    return value


def _described(
    spec: TensorSpec,
    shape: Sequence[int],
    parameters: dict[str, int] | None = None,
    data: list[float] | None = None,
) -> OutputTensor:
    return OutputTensor(name=spec.name, datatype=spec.datatype, shape=list(shape), parameters=parameters, data=data)
