"""Running a call of a pass again, on saved values or on others.

replayed = Replayer(graph.ops).run(call)                   # from the saved values of its parents
replayed.values[""]                                        # what it returned
Replayer(graph.ops).run(call, {source_of(reference): x})   # with x in place of one of them
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fastrec._torch.trees import leaves
from fastrec.graph.raw import CapturedCall, CapturedOp, Overwritten, Parameter, Ref, Reference, filled, flat
from fastrec.graph.tracking import may_draw, set_generator_states
from fastrec.graph.validation.comparison import differs

REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What functions of torch raise for values that don't suit them."""

UNINITIALISED = frozenset("empty emptylike newempty newemptystrided emptystrided emptypermuted new resize".split())
"""Functions whose values are, at least in part, whatever was in memory."""


CallArguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""The templates of a call's positional and keyword arguments."""


class CannotReplay(Exception):
    """The reason why a call cannot be run again."""


class Replayed(msgspec.Struct):
    """What a replayed call returned, by path, and its tensor arguments after a call that writes, by source.

    ``written`` are the sources of the arguments that are no longer what they were.
    """

    values: dict[str, Tensor]
    arguments: dict[Hashable, Tensor] = {}
    written: frozenset[Hashable] = frozenset()

    @property
    def tensors(self) -> dict[Hashable, Tensor]:
        """All that the call made: what it returned, and the arguments that it wrote to."""
        values: dict[Hashable, Tensor] = {("value", path): value for path, value in self.values.items()}
        return values | {source: self.arguments[source] for source in self.written}


class Replayer:
    """Runs calls of a capture again, from the saved values of their parents."""

    def __init__(self, ops: Sequence[CapturedOp]) -> None:
        self._ops = ops
        self._written_parameters = set(map(id, _written_parameters(ops)))

    def run(
        self,
        call: CapturedCall,
        instead: Mapping[Hashable, Tensor] | None = None,
        *,
        arguments_of: CallArguments | None = None,
        gradients: bool = False,
    ) -> Replayed:
        """Run a call, with other values ``instead`` of those of some sources, and other templates if given.

        With ``gradients``, autograd follows the values that require a gradient.
        """
        if call.layer_type == "external":
            raise CannotReplay("no function was seen to return it, and it is the same for slightly other inputs")
        if call.func is None or isinstance(call.func, nn.Module):
            raise CannotReplay("nothing was seen of the inside of its module, so there is no function to run again")
        if call.func is torch.autograd.grad:
            raise CannotReplay(
                "a derivative comes from autograd's graph of the pass, which saved values are not part of"
            )
        arguments: dict[Hashable, Tensor] = {}
        before: dict[Hashable, Tensor] = {}

        def tensor(reference: Reference) -> Tensor:
            source = source_of(reference)
            if source not in arguments:
                value = (instead or {}).get(source)
                value = self.value_of(reference) if value is None else value
                before[source] = value
                arguments[source] = value.clone() if call.inplace else value
            return arguments[source]

        template_args, template_kwargs = arguments_of or (call.args, call.kwargs)
        with circumstances_of(call, gradients=gradients):
            args = tuple([filled(item, tensor) for item in template_args])
            kwargs = {key: filled(item, tensor) for key, item in template_kwargs.items()}
            copy_generator(call, kwargs)
            out = call.func(*args, **kwargs)
            if out is None and args:
                out = args[0]
            values = dict(leaves(out))
            if not call.inplace:
                return Replayed(values)
            # The version counter does not tell: batch norm writes its statistics without it.
            written = frozenset(source for source, value in arguments.items() if differs(before[source], value))
            return Replayed(values, arguments, written)

    def value_of(self, reference: Reference) -> Tensor:
        """The tensor that a call got."""
        if isinstance(reference, Parameter):
            if id(reference.tensor) in self._written_parameters:
                raise CannotReplay(f"the pass writes to the parameter {reference.address!r}, which is not saved")
            return reference.tensor.detach()
        value = self._ops[reference.op].value if isinstance(reference, Ref) else reference.value
        if value is None:
            reason = self._ops[reference.op].unsaved if isinstance(reference, Ref) else ""
            raise CannotReplay(f"the value of an argument was not saved{': ' + reason if reason else ''}")
        return value.detach()


def source_of(reference: Reference) -> Hashable:
    """What a reference is to: an operation by its index, or a tensor from outside of the pass."""
    if isinstance(reference, Ref | Overwritten):
        return reference.op
    return "tensor", id(reference.tensor if isinstance(reference, Parameter) else reference)


def _written_parameters(ops: Sequence[CapturedOp]) -> Iterator[Tensor]:
    """The parameters that calls of a pass wrote in place."""
    for op in ops:
        if op.call.inplace:
            for target in (*op.call.args[:1], op.call.kwargs.get("out")):
                if isinstance(target, Parameter):
                    yield target.tensor


def parents_in(call: CapturedCall) -> dict[int, Ref | Overwritten]:
    """The operations whose values a call got, in order of the arguments, with how it got them."""
    parents: dict[int, Ref | Overwritten] = {}
    for leaf in flat((call.args, dict(call.kwargs))):
        if isinstance(leaf, Ref | Overwritten):
            parents.setdefault(leaf.op, leaf)
    return parents


@contextmanager
def circumstances_of(call: CapturedCall, *, gradients: bool = False) -> Iterator[None]:
    """The circumstances in which a call was made: random states and autocasting, but without building a graph."""
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(gradients))
        for device, dtype in call.autocast:
            stack.enter_context(torch.autocast(device, dtype))
        if call.rng and call.func is not None and may_draw(call.func):
            set_generator_states(call.rng)
        yield


def copy_generator(call: CapturedCall, kwargs: dict[str, Any]) -> None:
    """Replace a generator in ``kwargs`` by a new one in the state before the call, to leave the user's own alone."""
    if "generator" in call.rng:
        kwargs["generator"] = torch.Generator(kwargs["generator"].device)
        kwargs["generator"].set_state(call.rng["generator"])
