"""Running a model so that it is afterwards as it was before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def restored(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Put back what a pass may change: buffers, training and requires_grad flags, gradients.

    Inside of the block parameters have no gradient, so what arrives there does not mix with what was there.
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
        # The content is the one that a graph may have saved, so the version must not tell of a change.
        buffer.data.copy_(content)
