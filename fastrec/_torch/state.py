"""Running a model so that afterwards everything is as it was before.

    with restored([model]), random_state_restored():
        model(x)  # buffers, flags, gradients and random numbers are put back

A dry run and the reference run of the compiled engine call the user's model once more than the user does. That must not
show: not in a batch norm's statistics, not in the numbers drawn next, not in a counter that the model keeps.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def restored(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Put back what a pass may change: buffers, training and requires_grad flags, gradients.

    Inside of the block parameters have no gradient, so that a backward pass does not add to what was there.
    """
    modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
    training = [module.training for module in modules]
    buffers = [
        (module, name, buffer) for module in modules for name, buffer in module._buffers.items() if buffer is not None
    ]
    contents = {id(buffer): (buffer, buffer.detach().clone()) for _, _, buffer in buffers if not is_lazy(buffer)}
    parameters = list(dict.fromkeys(p for module in modules for p in module._parameters.values() if p is not None))
    flags = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for module, was_training in zip(modules, training, strict=True):
            if module.training != was_training:
                module.training = was_training
        for module, name, buffer in buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        for buffer, content in contents.values():
            _write_back(buffer, content)
        for parameter, (requires_grad, grad) in zip(parameters, flags, strict=True):
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def _write_back(buffer: Tensor, content: Tensor) -> None:
    same_form = buffer.shape == content.shape and buffer.dtype == content.dtype and buffer.device == content.device
    if not same_form:
        buffer.data = content
    elif buffer.layout != torch.strided or not torch.equal(buffer, content):
        # By .data, which leaves the version counter alone: the content is again the one that a graph may have saved for
        # its backward pass, which would otherwise raise.
        buffer.data.copy_(content)


@contextmanager
def attributes_restored(objects: Iterable[Any]) -> Iterator[None]:
    """Put back the attributes of objects, and what was in those that are lists, dicts, sets or deques."""
    snapshots = [(item.__dict__, dict(item.__dict__), _contents(item.__dict__)) for item in objects]
    missing = object()
    try:
        yield
    finally:
        for attributes, snapshot, contents in snapshots:
            for name in attributes.keys() - snapshot.keys():
                del attributes[name]
            for name, value in snapshot.items():
                if attributes.get(name, missing) is not value:
                    attributes[name] = value
            for container, content in contents:
                _refill(container, content)


def _contents(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The containers in an object's attributes, those of a module's own bookkeeping included, with their content."""
    return [(value, value.copy()) for value in attributes.values() if type(value) in (list, dict, set, deque)]


def _refill(container: Any, content: Any) -> None:
    if len(container) == len(content) and all(a is b for a, b in zip(_items(container), _items(content), strict=True)):
        return
    container.clear()
    container.extend(content) if isinstance(container, list | deque) else container.update(content)


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
