"""Tensors that a pass used, and that no function returned that was seen.

    externals.note(tensor, op)             # a tensor of unknown origin is read for the first time
    externals.settle(capture.ops, copy)    # the pass has ended

A constant in a closure and the result of ``torch.from_numpy`` look alike while the pass runs. When it has ended,
somebody still holds the constant, and nobody the other one. So the tensors are kept until then, as operations without
parents. Those that outlive the pass were there before it, and become plain constants in the arguments of the calls that
read them. The others came into being in the pass, and stay operations, ``external``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from fastrec._torch.tensors import python_references
from fastrec.graph.raw import CapturedOp, ConstantTensor, Parameter, Ref, mapped


class Externals:
    """The tensors of unknown origin in one pass; ``returned`` are the ids of those that the pass returns."""

    def __init__(self) -> None:
        self.returned: Set[int] = frozenset()
        self._tensors: list[Tensor] = []
        self._ops: list[CapturedOp] = []

    def note(self, value: Tensor, op: CapturedOp) -> None:
        """A tensor of unknown origin became an operation."""
        self._tensors.append(value)
        self._ops.append(op)

    def settle(self, ops: Sequence[CapturedOp], copy: Callable[[Tensor], Tensor | None]) -> None:
        """Turn the operations of those that outlive the pass into constants."""
        constants: dict[int, ConstantTensor | Parameter] = {}
        # Nobody else holds the last one, so that its count is that of a tensor that only this list holds.
        counts = [python_references(value) for value in (*self._tensors, torch.empty(0))]
        for op, value, count in zip(self._ops, self._tensors, counts[:-1], strict=True):
            if count > counts[-1] + 1 and id(value) not in self.returned:  # one more: the list of this object
                saved = op.value if op.value is not None else copy(value)
                is_parameter = isinstance(value, nn.Parameter)
                constants[op.index] = (
                    Parameter("", value) if is_parameter else ConstantTensor(op.shape, op.dtype, saved)
                )
        self._tensors.clear()
        if constants:
            _replace(ops, constants)


def _replace(ops: Sequence[CapturedOp], constants: dict[int, ConstantTensor | Parameter]) -> None:
    """Put constants in the place of operations, which then nothing reads."""

    def constant(leaf: Any) -> Any:
        return constants.get(leaf.op, leaf) if isinstance(leaf, Ref) else leaf

    for op in ops:
        if constants.keys().isdisjoint(op.parents):
            continue
        read = [constants[parent] for parent in op.parents if parent in constants]
        op.parents = tuple(parent for parent in op.parents if parent not in constants)
        call = op.call
        call.args = tuple(mapped(item, constant) for item in call.args)
        call.kwargs = {key: mapped(item, constant) for key, item in call.kwargs.items()}
        parameters = (*call.parameters, *(leaf for leaf in read if isinstance(leaf, Parameter)))
        call.parameters = tuple({id(parameter.tensor): parameter for parameter in parameters}.values())
