"""A GPU's rules without a GPU: tensors that claim to be on one, and are computed on the CPU.

On a CPU every operand is on one device, so no test there can tell whether a model was moved to where its data are. Here
a `ClaimedTensor` wraps a CPU tensor, as PyTorch's FakeTensor wraps a shape: it says ``cuda:0`` to whoever asks, and
each operation on it is checked by the rules that CUDA has before it is computed on what is inside:

- all operands are on one device, but for CPU scalars of no dimension in elementwise operations, CPU indices of a tensor
  on the GPU (not the reverse), and copies;
- ``numpy()`` is refused, and so is a random generator of another device;
- factories make a tensor where ``device`` says.

Results are the CPU's own, bit for bit: only where they are changes. What a GPU has to be waited for is counted in
`Accelerator.reads`: a ``number`` that the host reads, a ``copy`` of a tensor to it, the ``shape`` of a result that
depends on values, as that of ``nonzero`` does, and an ``upload``, a tensor that is sent to the GPU without
``non_blocking``, or as an index of one that is there: torch then waits until all that was asked for before is done.

To C++ the device of a claimed tensor is ``cpu:0``, of a CPU tensor ``cpu`` without an index: a tensor whose C++ device
is CUDA cannot have a gradient on a machine without its driver, since autograd asks for its stream. So C++ can tell the
two apart, and keeps them apart, and autocast for CUDA runs as the CPU's, whose list of operations is a little shorter.

Not covered: kernels that CUDA lacks or computes otherwise, streams, several GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
PLACE = torch.device("cuda", 0)  # what Python is told
HOST = torch.device("cpu")
_MARK = torch.device("cpu", 0)  # what C++ is told

_COPIES = (aten.copy_, aten._to_copy, aten._foreach_copy_)
_INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
_TAKES_A_SCALAR = (aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_)  # beside what is tagged as elementwise


class MixedDevicesError(RuntimeError):
    """What CUDA answers to operands on different devices."""


class ClaimedTensor(Tensor):
    """A CPU tensor that claims to be on a GPU; made by operations inside an `Accelerator`."""

    inner: Tensor

    def __new__(cls, inner: Tensor) -> ClaimedTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=_MARK,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function}: a claimed tensor has outlived its accelerator")

    device = property(lambda self: PLACE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return PLACE.index

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {PLACE} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    def to(self, *args, **kwargs):
        """Moving to the GPU gives the tensor itself, if nothing else changes, as it does there."""
        args = [_MARK if _is_gpu(arg) else arg for arg in args]
        return super().to(*args, **{name: _MARK if _is_gpu(value) else value for name, value in kwargs.items()})

    def cuda(self, *args, **kwargs):
        return self

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, ClaimedTensor):
            raise MixedDevicesError(f"data: a tensor on {PLACE} cannot become one on {value.device}")
        if (value.shape, value.stride(), value.dtype) != (self.shape, self.stride(), self.dtype):
            raise NotImplementedError("data: a claimed tensor keeps its shape, strides and type")
        self.inner = value.inner

    def item(self):
        return _read_number(self, Tensor.item)

    def __bool__(self) -> bool:
        return _read_number(self, Tensor.__bool__)

    def __float__(self) -> float:
        return _read_number(self, Tensor.__float__)

    def __int__(self) -> int:
        return _read_number(self, Tensor.__int__)

    def __index__(self) -> int:
        return _read_number(self, Tensor.__index__)

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else repr(self)

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"claimed({self.inner!r}, device={str(PLACE)!r})"

    def __deepcopy__(self, memo):
        made = ClaimedTensor(self.inner.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol):
        """Saved as a CPU tensor, which it is when it is loaded with ``map_location="cpu"``."""
        return self.inner.detach().__reduce_ex__(protocol)


class Accelerator(TorchDispatchMode):
    """While it is open, ``cuda`` is a device, the only one of its kind, and `csr.training.runtime.device` finds it.

    Args:
        bfloat16: whether it computes in that type, as an H100 does and a T4 does not.

    Attributes:
        operations: how many were computed on it.
        reads: what the host waited for, by kind.
        pinned: tensors that were put into memory that a GPU reads by itself.
    """

    def __init__(self, bfloat16: bool = False) -> None:
        super().__init__()
        self.operations = 0
        self.reads: Counter[str] = Counter()
        self.pinned = 0
        self._bfloat16 = bfloat16
        self._undo = ExitStack()

    def __enter__(self) -> Accelerator:
        answers = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: PLACE.index,
            "set_device": lambda device: None,
            "is_bf16_supported": lambda including_emulation=True: self._bfloat16,
            "get_device_capability": lambda device=None: (9, 0) if self._bfloat16 else (7, 5),
            "is_current_stream_capturing": lambda: False,
            "synchronize": lambda device=None: None,
            "get_device_name": lambda device=None: "claimed",
            "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "get_rng_state": lambda device=None: torch.empty(0, dtype=torch.uint8),
            "set_rng_state": lambda state, device=None: None,
            "_lazy_init": lambda: None,
        }
        self._undo.enter_context(patch.multiple(torch.cuda, **answers))
        self._undo.enter_context(patch.object(torch, "autocast", _Autocast))
        self._undo.enter_context(patch.object(Tensor, "pin_memory", lambda tensor: self._pin(tensor)))
        # as FakeTensorMode: tensors are made of numbers on the CPU, then moved; no guard asks for the driver
        self._undo.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._ensureCUDADeviceGuardSet()
        # as on a GPU, a module's parameters stay the same objects when it moves
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        self._undo.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        torch.__future__.set_swap_module_params_on_conversion(True)
        self._undo.enter_context(patch.object(torch.utils, "swap_tensors", _swap))
        _open.append(self)
        self._undo.callback(_open.remove, self)
        super().__enter__()
        self._undo.callback(super().__exit__, None, None, None)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """There is no GPU any more; closing twice does nothing."""
        self._undo.close()

    def _pin(self, tensor: Tensor) -> Tensor:
        self.pinned += 1
        return tensor.clone()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        leaves, form = tree_flatten((args, kwargs or {}))
        claimed = [leaf for leaf in leaves if isinstance(leaf, ClaimedTensor)]
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        if not claimed and not devices:
            return function(*args, **(kwargs or {}))
        here = bool(claimed)
        if devices:
            here = devices[0] == _MARK or _is_gpu(devices[0])
        elif function.overloadpacket is aten.copy_:
            here = isinstance(args[0], ClaimedTensor)
        _check(function, args, leaves, here)
        self.operations += here
        if kind := _waits(function, args, kwargs or {}, here):
            self.reads[kind] += 1
        inside, inside_kwargs = tree_unflatten([_inside(leaf, here) for leaf in leaves], form)
        result = function(*inside, **inside_kwargs)
        if claimed and torch.Tag.inplace_view in function.tags:
            with no_dispatch():  # the wrapper's own shape and strides follow
                function(*args, **kwargs or {})
        return _claim(result, claimed) if here else result


_open: list[Accelerator] = []  # those that are open, the innermost last: where reads of single numbers are counted


class _Autocast(torch.autocast):
    """Autocast for the claimed GPU; for the CPU it leaves claimed tensors alone, so that asking for it helps nobody."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **more: Any) -> None:
        super().__init__("cpu", dtype, enabled and device_type == "cuda", **more)


_swap_objects = torch.utils.swap_tensors


def _swap(old: Tensor, new: Tensor) -> None:
    """Gives ``old`` what ``new`` holds. Objects are swapped, which a living graph forbids, only where tensors move."""
    if type(old) is type(new) and (old.stride() == new.stride() or not isinstance(old, ClaimedTensor)):
        old.data = new.detach()
    else:
        _swap_objects(old, new)


def _read_number(tensor: ClaimedTensor, read: Callable[[Tensor], Any]) -> Any:
    if _open:
        _open[-1].reads["number"] += 1
    return read(tensor.inner)


def _is_gpu(value: object) -> bool:
    """Whether an argument names the claimed GPU.

    Raises:
        MixedDevicesError: it names another.
    """
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        value = torch.device(value)
    if not isinstance(value, torch.device) or value.type != "cuda":
        return False
    if value.index not in (None, PLACE.index):
        raise MixedDevicesError(f"there is no {value}: one GPU is claimed, {PLACE}")
    return True


def _inside(value: object, here: bool) -> object:
    """What an operation is computed with: the CPU's tensors, and the CPU for the GPU."""
    if isinstance(value, ClaimedTensor):
        return value.inner
    return HOST if here and isinstance(value, torch.device) else value


def _claim(result: Any, operands: list[ClaimedTensor]) -> Any:
    """The result with its tensors claimed: operands that were changed in place, and new ones."""
    known = {id(each.inner): each for each in operands}

    def wrapped(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else ClaimedTensor(value)

    return tree_map(wrapped, result)


def _check(function: Any, args: tuple, leaves: list, here: bool) -> None:
    """Refuses operands that CUDA would refuse.

    Raises:
        MixedDevicesError: naming the operation.
    """
    for leaf in leaves:
        if here and isinstance(leaf, torch.Generator) and leaf.device.type != PLACE.type:
            raise MixedDevicesError(
                f"{function}: expected a 'cuda' device type for generator but found {leaf.device.type!r}"
            )
    strangers = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, ClaimedTensor)]
    packet = function.overloadpacket
    if not strangers or packet in _COPIES or not any(isinstance(leaf, ClaimedTensor) for leaf in leaves):
        return
    if packet in _INDEXING:
        on_gpu = isinstance(args[0], ClaimedTensor)
        values = args[2] if len(args) > 2 else args[0]
        fits = isinstance(values, ClaimedTensor) == on_gpu or values.dim() == 0
        if fits and (on_gpu or not any(isinstance(each, ClaimedTensor) for each in args[1])):
            return
        raise MixedDevicesError(
            f"{function}: expected indices on cpu or on the device of what they index, {args[0].device}, and values "
            "on that device"
        )
    elementwise = torch.Tag.pointwise in function.tags or packet in _TAKES_A_SCALAR
    changed = torch.Tag.inplace in function.tags or packet in _TAKES_A_SCALAR
    if elementwise and all(each.dim() == 0 for each in strangers) and not (changed and args[0] is strangers[0]):
        return
    shapes = ", ".join(str(tuple(each.shape)) for each in strangers)
    raise MixedDevicesError(
        f"{function}: expected all tensors to be on the same device, but found {PLACE} and cpu (of shape {shapes})"
    )


def _waits(function: Any, args: tuple, kwargs: dict, here: bool) -> str | None:
    """What an operation with a claimed operand or result makes the host wait for."""
    packet = function.overloadpacket
    if packet in _COPIES:
        source = args[1] if packet is aten.copy_ else args[0]
        if not here:
            return "copy" if isinstance(source, ClaimedTensor) else None
        blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        return "upload" if blocking and not isinstance(source, ClaimedTensor) else None
    if here and packet in _INDEXING:
        indices = [each for each in args[1] if each is not None]
        if not all(isinstance(each, ClaimedTensor) for each in indices):
            return "upload"
        return "shape" if any(each.dtype == torch.bool for each in indices) else None
    return "shape" if here and torch.Tag.dynamic_output_shape in function.tags else None
