"""The function call that computed an operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastrec.graph._arguments import filled, without_tensors
from fastrec.graph._operation_base import Facts
from fastrec.graph._raw import Constant, Parameter, Ref, Stale
from fastrec.graph._stacks import FuncCallLocation, locations


class CallFacts(Facts):
    """The function, its arguments and its circumstances."""

    __slots__ = ()

    @property
    def creation_args(self) -> tuple[Any, ...]:
        """The positional arguments; tensors as they were then where they were saved, else the label of theirs."""
        return tuple(filled(item, self._tensor_of) for item in self.raw.call.args)

    @property
    def creation_kwargs(self) -> dict[str, Any]:
        """The keyword arguments, like ``creation_args``."""
        return {key: filled(item, self._tensor_of) for key, item in self.raw.call.kwargs.items()}

    def _tensor_of(self, reference: Ref | Stale | Parameter | Constant) -> Any:
        if isinstance(reference, Parameter):
            return reference.tensor
        if isinstance(reference, Ref):
            value = self._graph.ops[reference.op].value
            return self._graph.label(reference.op) if value is None else value
        if isinstance(reference, Stale) and reference.value is None:
            return self._graph.label(reference.op)
        return reference if reference.value is None else reference.value

    @property
    def func_applied(self) -> Callable[..., Any] | None:
        """The function that was called, None for inputs, buffers and outputs."""
        return self.raw.call.func

    @property
    def func_applied_name(self) -> str:
        """The name of that function as torch has it, empty for inputs, buffers and outputs."""
        return self.raw.call.func_name

    @property
    def func_time_elapsed(self) -> float:
        """How long the call took, in seconds."""
        return self.raw.call.seconds

    @property
    def func_rng_states(self) -> Mapping[str, Tensor]:
        """The states of the random generators before the call, by device, and of a generator that it was given."""
        return self.raw.call.rng

    @property
    def func_position_args_non_tensor(self) -> list[Any]:
        """The positional arguments that are no tensors."""
        return [kept for item in self.raw.call.args if (kept := _kept(item)) is not _NOTHING]

    @property
    def func_keyword_args_non_tensor(self) -> dict[str, Any]:
        """The keyword arguments that are no tensors."""
        items = ((key, _kept(item)) for key, item in self.raw.call.kwargs.items())
        return {key: kept for key, kept in items if kept is not _NOTHING}

    @property
    def func_call_stack(self) -> list[FuncCallLocation]:
        """The lines of source that were running, outermost first."""
        return locations(self.raw.call.stack)

    @property
    def function_is_inplace(self) -> bool:
        """Whether the call wrote one of its arguments."""
        return self.raw.call.inplace

    @property
    def gradfunc_name(self) -> str | None:
        """The name of the value's gradient function, None where it has none."""
        return self.raw.grad_fn

    @property
    def is_part_of_iterable_output(self) -> bool:
        """Whether the call returned several values in a tuple, list or dict, of which this is one."""
        return self.raw.output_index is not None

    @property
    def iterable_output_index(self) -> int | None:
        """Which of those it is, from 0; None where it is the only one."""
        return self.raw.output_index

    @property
    def computed_with_params(self) -> bool:
        """Whether parameters were among the arguments."""
        return bool(self.raw.call.parameters)

    @property
    def num_param_tensors(self) -> int:
        """How many parameters were among the arguments."""
        return len(self.raw.call.parameters)

    @property
    def parent_params(self) -> list[str]:
        """The addresses of those parameters."""
        return [parameter.address for parameter in self.raw.call.parameters]

    @property
    def parent_param_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of those parameters."""
        return [tuple(parameter.tensor.shape) for parameter in self.raw.call.parameters]

    @property
    def num_params_total(self) -> int:
        """How many numbers those parameters hold."""
        return sum(parameter.tensor.numel() for parameter in self.raw.call.parameters)

    @property
    def parent_params_fsize(self) -> int:
        """The size of those parameters in bytes."""
        return sum(p.tensor.numel() * p.tensor.element_size() for p in self.raw.call.parameters)


_NOTHING: Any = object()


def _kept(item: Any) -> Any:
    """What is left of an argument without its tensors."""
    left = without_tensors(item)
    return _NOTHING if left is None and item is not None else left
