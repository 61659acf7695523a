"""The JSON of the Open Inference Protocol: requests, checked strictly, and answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, WithJsonSchema

# Bounds that no honest request meets, so that messages about the others stay short and checks cheap.
Name = Annotated[str, Field(max_length=100)]
Parameters = Annotated[dict[Name, StrictBool | StrictInt | StrictFloat | StrictStr], Field(max_length=16)]
# Flat or nested as the shape; what it holds is checked against the shape and the datatype, by
# `serving.interfaces.oip.tensors`.
Data = Annotated[
    list[Any],
    WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "array", "items": {}}]}}),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class InputTensor(_Request):
    """An input: ``data``, or ``binary_data_size`` bytes behind the JSON."""

    name: Name
    shape: list[int] = Field(max_length=8)
    datatype: Name
    parameters: Parameters = {}
    data: Data | None = None


class RequestedOutput(_Request):
    """An output that is asked for; its parameter ``binary_data`` asks for bytes."""

    name: Name
    parameters: Parameters = {}


class InferRequest(_Request):
    """Inputs, and which outputs are wanted: all where none is named. ``binary_data_output`` asks for all as bytes."""

    id: str | None = Field(default=None, max_length=256)
    parameters: Parameters = {}
    inputs: list[InputTensor] = Field(max_length=16)
    outputs: list[RequestedOutput] = Field(default=[], max_length=16)


class OutputTensor(_Answer):
    """An output: ``data``, flat in row-major order, or ``binary_data_size`` bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | None = None


class InferAnswer(_Answer):
    """The outputs, the version that computed them, and the request's ``id``."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(_Answer):
    """A tensor; -1 in its shape is the batch."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Answer):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(_Answer):
    """Which server this is, and what it knows beyond the protocol's core."""

    name: str
    version: str
    extensions: list[str]


class Live(_Answer):
    """The process answers."""

    live: bool


class Ready(_Answer):
    """Requests can be answered."""

    ready: bool


class ModelReady(_Answer):
    """A model can be asked."""

    name: str
    ready: bool


class Refusal(_Answer):
    """The body of every answer that is not a success: a sentence for people, a stable code for programs."""

    error: str
    code: str
