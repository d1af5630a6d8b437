"""Running a model so that afterwards everything is as it was before.

    with restored([model]), random_state_restored():
        model(x)  # tensors, attributes, flags, gradients and random numbers are put back

A dry run, a validation and the reference run of the compiled engine call the user's model once more than the user does.
That must not show: not in a batch norm's statistics, not in the numbers drawn next, not in a table that the model fills
at its first call, nor in the attribute beside it that says how far it is filled.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from fastrec._errors import FastrecWarning

MAX_COPIED_BYTES = 1 << 30
"""Parameters and other tensors of a model are copied up to this size in all; buffers always are."""

MAX_DISTANCE = 2
"""How many plain objects there may be between a module and what is put back: ``model.cache.table`` has one."""


@contextmanager
def restored(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Put back what a pass may change: attributes, the content of tensors, flags, gradients, what lazy modules became.

    Inside of the block parameters have no gradient, so that a backward pass does not add to what was there. Tensors
    other than buffers are copied up to ``MAX_COPIED_BYTES``; a larger one that is written to is told in a warning.
    """
    modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
    parameters = list(dict.fromkeys(p for module in modules for p in module._parameters.values() if p is not None))
    flags = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    with attributes_restored(modules):
        try:
            for parameter in parameters:
                parameter.grad = None
            yield
        finally:
            for parameter, (requires_grad, grad) in zip(parameters, flags, strict=True):
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
                parameter.grad = grad


@contextmanager
def attributes_restored(objects: Iterable[Any]) -> Iterator[None]:
    """Put back the attributes of objects and what lies in them: containers, tensors, generators, objects in turn."""
    snapshot = _Snapshot()
    for item in objects:
        snapshot.add_object(item, MAX_DISTANCE)
    try:
        yield
    finally:
        snapshot.put_back()


_LEFT_ALONE = (
    *(str, bytes, int, float, type(None)),
    *(ModuleType, type, FunctionType, MethodType, BuiltinFunctionType, torch.device, torch.dtype),
    *(Optimizer, Dataset, DataLoader, threading.local),
)
"""What a pass does not change, and what may hold much that is no part of a model."""

_CONTAINERS: tuple[type, ...] = (OrderedDict, dict, list, set, deque)


class _Snapshot:
    """What objects were like, as far as a pass may change them."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # by id, held so that nothing else gets the id
        self._attributes: list[tuple[Any, type, dict[str, Any]]] = []
        self._containers: list[tuple[Any, type, Any]] = []
        self._contents: list[tuple[Tensor, Tensor]] = []
        self._too_large: list[tuple[Tensor, int]] = []
        self._lazy: list[tuple[Tensor, type, Tensor]] = []
        self._states: list[Callable[[], object]] = []  # put back what is neither tensor nor container
        self._copied_bytes = 0

    def add_object(self, item: Any, distance: int) -> None:
        """Take in an object with attributes: a module, or something that a module holds."""
        if self._is_new(item):
            attributes: dict[str, Any] = vars(item)
            self._attributes.append((item, type(item), dict(attributes)))
            for name, value in attributes.items():
                self._add(value, distance, is_buffer=name == "_buffers" and isinstance(item, nn.Module))

    def _add(self, value: Any, distance: int, *, is_buffer: bool = False) -> None:
        if isinstance(value, _LEFT_ALONE) or type(value).__module__.startswith(("fastrec.", "torch._dynamo.")):
            return
        if isinstance(value, tuple):
            for item in value:
                self._add(item, distance)
        elif isinstance(value, nn.Module):
            self.add_object(value, distance)  # also one in a list, which torch does not take for a part of the model
        elif not self._is_new(value):
            return
        elif isinstance(value, Tensor):
            self._add_tensor(value, is_buffer=is_buffer)
        elif isinstance(value, _CONTAINERS):
            cls = next(cls for cls in _CONTAINERS if isinstance(value, cls))
            self._containers.append((value, cls, cls(value)))
            for item in value.values() if isinstance(value, dict) else value:  # type: ignore[attr-defined]
                self._add(item, distance, is_buffer=is_buffer)
        elif not self._add_state(value) and distance and isinstance(getattr(value, "__dict__", None), dict):
            del self._seen[id(value)]
            self.add_object(value, distance - 1)

    def _add_tensor(self, value: Tensor, *, is_buffer: bool) -> None:
        has_own_dispatch = type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__
        if is_lazy(value):
            self._lazy.append((value, type(value), value.data))
        elif value.is_meta or (has_own_dispatch and not is_buffer):
            return
        elif is_buffer or self._copied_bytes + value.nbytes <= MAX_COPIED_BYTES:
            self._copied_bytes += 0 if is_buffer else value.nbytes
            self._contents.append((value, value.detach().clone()))
        elif not value.is_inference():
            self._too_large.append((value, value._version))

    def _add_state(self, value: Any) -> bool:
        """Take in an array or a generator of random numbers; False for anything else."""
        if isinstance(value, np.ndarray):
            content = value.copy()
            self._states.append(lambda: np.copyto(value, content) if value.flags.writeable else None)
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._states.append(lambda: value.set_state(state))
        elif isinstance(value, random.Random):
            python_state = value.getstate()
            self._states.append(lambda: value.setstate(python_state))
        elif isinstance(value, np.random.Generator):
            bits, numpy_state = value.bit_generator, value.bit_generator.state
            self._states.append(lambda: setattr(bits, "state", numpy_state))
        else:
            return False
        return True

    def _is_new(self, item: Any) -> bool:
        is_new = id(item) not in self._seen
        self._seen[id(item)] = item
        return is_new

    def put_back(self) -> None:
        """Make everything what it was."""
        for item, cls, attributes in self._attributes:
            _put_back_attributes(item, cls, attributes)
        for container, cls, content in self._containers:
            _refill(container, cls, content)
        for parameter, cls, data in self._lazy:
            if type(parameter) is not cls:
                parameter.data = data
                parameter.__class__ = cls
        with torch.no_grad():
            for tensor, content in self._contents:
                _write_back(tensor, content)
        for put_back in self._states:
            put_back()
        written = [tuple(tensor.shape) for tensor, version in self._too_large if tensor._version != version]
        if written:
            warnings.warn(
                f"the pass wrote to {len(written)} tensors of the model that are no buffers, the first of shape "
                f"{written[0]}; they are too large to be copied for this, so they keep what was written. Run it on "
                "copy.deepcopy(model)",
                FastrecWarning,
                stacklevel=4,
            )


def _put_back_attributes(item: Any, cls: type, snapshot: dict[str, Any]) -> None:
    attributes, missing = vars(item), object()
    for name in attributes.keys() - snapshot.keys():
        del attributes[name]
    for name, value in snapshot.items():
        if attributes.get(name, missing) is not value:
            attributes[name] = value
    if type(item) is not cls:  # a lazy module, which its first call made an ordinary one
        item.__class__ = cls


def _write_back(tensor: Tensor, content: Tensor) -> None:
    same_form = tensor.shape == content.shape and tensor.dtype == content.dtype and tensor.device == content.device
    if not same_form:
        tensor.data = content
    elif tensor.layout != torch.strided or not torch.equal(tensor, content):
        # By .data, which leaves the version counter alone: the content is again the one that a graph may have saved for
        # its backward pass, which would otherwise raise.
        with torch.inference_mode(tensor.is_inference()):
            tensor.data.copy_(content)


def _refill(container: Any, cls: Any, content: Any) -> None:
    if len(container) == len(content) and all(a is b for a, b in zip(_items(container), _items(content), strict=True)):
        return
    cls.clear(container)  # by the built-in class, because a subclass may do more than keep what it is given
    (cls.extend if cls in (list, deque) else cls.update)(container, content)


def _items(container: Any) -> Iterable[Any]:
    return (item for pair in container.items() for item in pair) if isinstance(container, dict) else container


@contextmanager
def random_state_restored() -> Iterator[None]:
    """Leave the random state of torch, numpy and Python after the block as it was before."""
    state, numpy_state = random.getstate(), np.random.get_state()
    # By default fork_rng would start CUDA for a model on the CPU, and warn where there are several devices.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch, numpy and Python's random inside of the block; with None nothing changes."""
    if seed is None:
        yield
        return
    with random_state_restored():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
