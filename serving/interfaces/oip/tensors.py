"""Tensors as clients send them → arrays that a model takes, or one sentence that says what is wrong with which.

Nothing is converted that would lose something: no other datatype, no boolean or string for a number, no number out of
range, no NaN, no infinity. Nothing is guessed either: a parameter that this server does not honour is refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from serving.engines.triton.config import MAX_BATCH
from serving.errors import InvalidInferenceError
from serving.interfaces.oip.models import DATATYPES, ModelSpec, TensorSpec

_NUMBERS: dict[str, set[type]] = {"UINT8": {int}, "FP32": {int, float}}
_REASONS = {
    "shared_memory": "memory of this machine is not for clients; send the tensor",
    "classification": "ask for 'probabilities' and choose the largest",
    "sequence": "a request depends on no other one here",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as it arrived.

    Args:
        name, datatype, shape: what the client says it is.
        content: little-endian bytes in row-major order, or numbers, flat or nested as the shape is.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes | memoryview | list[Any]


def decode(spec: ModelSpec, given: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """The inputs of a model: each of them once, of its datatype and shape, all of one batch, all numbers finite.

    Raises:
        InvalidInferenceError: they are not.
    """
    known = {each.name: each for each in spec.inputs}
    arrays: dict[str, np.ndarray] = {}
    for tensor in given:
        if tensor.name not in known:
            raise InvalidInferenceError(f"input {_shown(tensor.name)}: is unknown; {spec.name} takes {_names(known)}")
        if tensor.name in arrays:
            raise InvalidInferenceError(f"input {_shown(tensor.name)}: is given twice")
        arrays[tensor.name] = _array(known[tensor.name], tensor)
    if missing := [name for name in known if name not in arrays]:
        raise InvalidInferenceError(f"input {missing[0]!r}: is missing; {spec.name} takes {_names(known)}")
    batches = {name: len(array) for name, array in arrays.items()}
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f"{name} {size}" for name, size in batches.items())
        raise InvalidInferenceError(f"inputs: differ in their first axis, the batch ({sizes})")
    return arrays


def encode(spec: TensorSpec, array: np.ndarray) -> bytes:
    """An output's bytes, little-endian in row-major order."""
    return array.astype(DATATYPES[spec.datatype], copy=False).tobytes()


def requested(spec: ModelSpec, names: Sequence[str]) -> list[TensorSpec]:
    """The outputs that a client asks for, in its order; all of them if it names none.

    Raises:
        InvalidInferenceError: one is unknown or named twice.
    """
    known = {each.name: each for each in spec.outputs}
    for index, name in enumerate(names):
        if name not in known:
            raise InvalidInferenceError(f"output {_shown(name)}: is unknown; {spec.name} gives {_names(known)}")
        if name in names[:index]:
            raise InvalidInferenceError(f"output {_shown(name)}: is asked for twice")
    return [known[name] for name in names] or list(spec.outputs)


def check_parameters(where: str, given: Iterable[str], known: Collection[str] = ()) -> None:
    """Refuses parameters that would be ignored.

    Args:
        where: what they belong to, for people.
        given: their names.
        known: those that are honoured there.

    Raises:
        InvalidInferenceError: one is not known.
    """
    for name in given:
        if name not in known:
            reasons = (reason for start, reason in _REASONS.items() if name.startswith(start))
            raise InvalidInferenceError(
                f"{where}: parameter {_shown(name)} is not supported; {next(reasons, 'leave it out')}"
            )


def _array(spec: TensorSpec, given: Tensor) -> np.ndarray:
    where = f"input {spec.name!r}"
    if given.datatype != spec.datatype:
        raise InvalidInferenceError(f"{where}: datatype is {_shown(given.datatype)}, but it takes {spec.datatype}")
    if len(given.shape) != len(spec.shape) or given.shape[1:] != spec.shape[1:]:
        takes = ", ".join(map(str, spec.shape[1:]))
        raise InvalidInferenceError(f"{where}: shape is {_shown(list(given.shape))}, but it takes [batch, {takes}]")
    if not 1 <= given.shape[0] <= MAX_BATCH:
        raise InvalidInferenceError(f"{where}: the batch is {_shown(given.shape[0])}, but may be 1 to {MAX_BATCH}")
    if isinstance(given.content, list):
        array = _from_numbers(where, given, given.content)
    else:
        array = _from_bytes(where, given, given.content)
    if not np.isfinite(array).all():
        raise InvalidInferenceError(f"{where}: holds NaN, infinity or a number beyond 32-bit floats")
    return array


def _from_bytes(where: str, given: Tensor, content: bytes | memoryview) -> np.ndarray:
    dtype = DATATYPES[given.datatype]
    expected = math.prod(given.shape) * dtype.itemsize
    if len(content) != expected:
        raise InvalidInferenceError(
            f"{where}: has {len(content):,} bytes, but shape {list(given.shape)} of {given.datatype} is {expected:,}"
        )
    return np.frombuffer(content, dtype).reshape(given.shape)


def _from_numbers(where: str, given: Tensor, data: list[Any]) -> np.ndarray:
    flat = _flat(where, given.shape, data)
    if wrong := set(map(type, flat)) - _NUMBERS[given.datatype]:
        kinds = " and ".join(sorted(kind.__name__ for kind in wrong))
        raise InvalidInferenceError(f"{where}: data holds {kinds} where only {given.datatype} numbers may be")
    try:
        with np.errstate(over="ignore"):  # to infinity, which the caller refuses
            return np.array(flat, DATATYPES[given.datatype]).reshape(given.shape)
    except OverflowError:
        raise InvalidInferenceError(f"{where}: data holds a number out of the range of {given.datatype}") from None


def _flat(where: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """Numbers in row-major order, of a list that is flat or nested exactly as the shape is."""
    if data and isinstance(data[0], list):
        level = [data]
        for size in shape:
            if not all(isinstance(each, list) and len(each) == size for each in level):
                raise InvalidInferenceError(f"{where}: data is not nested as its shape {list(shape)} is")
            level = list(chain.from_iterable(level))
        return level
    if len(data) != (expected := math.prod(shape)):
        raise InvalidInferenceError(
            f"{where}: data has {len(data):,} numbers, but shape {list(shape)} has {expected:,}"
        )
    return data


def _names(known: Iterable[str]) -> str:
    return ", ".join(known)


def _shown(value: object) -> str:
    """What a client sent, cut to a length for a message."""
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"
