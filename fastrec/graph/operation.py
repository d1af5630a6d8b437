"""One operation of a history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrec.graph.layers import Layer
from fastrec.graph.raw import CapturedOp, ConstantTensor, Overwritten, Parameter, Ref, filled, without_tensors
from fastrec.graph.show import format_operation
from fastrec.graph.structure import Graph, ancestors, descendants
from fastrec.graph.tracking import FuncCallLocation, locations
from fastrec.recording._recording import Recording
from fastrec.recording._records import ActivationRecord

if TYPE_CHECKING:
    from fastrec.graph.history import ModelHistory


class Facts:
    """An operation of a history, by its index in the capture."""

    __slots__ = ("history", "index")

    def __init__(self, history: ModelHistory, index: int) -> None:
        self.history = history
        self.index = index

    @property
    def raw(self) -> CapturedOp:
        """What was captured."""
        return self.history.graph.ops[self.index]

    @property
    def _graph(self) -> Graph:
        return self.history.graph

    @property
    def _layer(self) -> Layer:
        return self.history.graph.layer(self.index)

    def _labels(self, indices: Iterable[int]) -> list[str]:
        return [self.history.graph.label(index) for index in indices]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and other.history is self.history and other.index == self.index

    def __hash__(self) -> int:
        return hash((id(self.history), self.index))


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

    def _tensor_of(self, reference: Ref | Overwritten | Parameter | ConstantTensor) -> Any:
        if isinstance(reference, Parameter):
            return reference.tensor
        if isinstance(reference, Ref):
            value = self._graph.ops[reference.op].value
            return self._graph.label(reference.op) if value is None else value
        if isinstance(reference, Overwritten) and reference.value is None:
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


class ModuleFacts(Facts):
    """Modules around an operation; a module pass is written ``address:pass``. The model itself is not counted."""

    __slots__ = ()

    @property
    def is_computed_inside_submodule(self) -> bool:
        """Whether it ran inside of a submodule."""
        return self.containing_module_origin is not None

    @property
    def containing_module_origin(self) -> str | None:
        """The innermost module pass that it ran in, None for the model itself."""
        nested = self.containing_module_origin_nested
        return nested[-1] if nested else None

    @property
    def containing_module_origin_nested(self) -> list[str]:
        """All module passes that it ran in, outermost first."""
        found = []
        call = self.raw.module
        while call is not None and call.address:
            found.append(call.label)
            call = call.parent
        return found[::-1]

    @property
    def modules_entered(self) -> list[str]:
        """The module passes that its value went into."""
        return [call.label for call in self._graph.module_entries.get(self.index, ())]

    @property
    def is_submodule_output(self) -> bool:
        """Whether its value left a submodule."""
        return self.index in self._graph.module_exits

    @property
    def modules_exited(self) -> list[str]:
        """The module passes that its value left, in order."""
        return [call.label for call in self._graph.module_exits.get(self.index, ())]

    @property
    def is_bottom_level_submodule_output(self) -> bool:
        """Whether its value left a submodule in which it was the only operation."""
        return self.bottom_level_module is not None

    @property
    def bottom_level_module(self) -> str | None:
        """The module pass that it left as the only operation in it."""
        call = self.raw.module
        alone = call is not None and call.address and call.ops == 1 and self.index in call.exited
        return call.label if alone and call is not None else None


class RelationFacts(Facts):
    """Parents, children, ends and conditions; lists of labels are in execution order."""

    __slots__ = ()

    def _where(self, indices: Iterable[int], kind: str) -> list[str]:
        ops = self._graph.ops
        return self._labels(i for i in sorted(indices) if ops[i].kind == kind)

    @property
    def same_layer_operations(self) -> list[str]:
        """All passes of its layer, with their numbers, itself included."""
        return list(self._graph.passes[self._layer.label])

    @property
    def parent_layers(self) -> list[str]:
        """The operations whose values it read, in the order of its arguments."""
        return self._labels(self.raw.parents)

    @property
    def orig_ancestors(self) -> list[str]:
        """Its ancestors that have no parents."""
        ops = self._graph.ops
        return self._labels(i for i in sorted(ancestors(ops, self.index)) if not ops[i].parents)

    @property
    def child_layers(self) -> list[str]:
        """The operations that read its value."""
        return self._labels(self._children)

    @property
    def _children(self) -> list[int]:
        return self._graph.children.get(self.index, [])

    @property
    def sibling_layers(self) -> list[str]:
        """Other operations that share a parent with it."""
        children = self._graph.children
        return self._labels(sorted({c for parent in self.raw.parents for c in children[parent]} - {self.index}))

    @property
    def spouse_layers(self) -> list[str]:
        """Other operations that share a child with it."""
        ops = self._graph.ops
        return self._labels(sorted({p for child in self._children for p in ops[child].parents} - {self.index}))

    @property
    def is_input_layer(self) -> bool:
        """Whether it is an input of the model."""
        return self.raw.kind == "input"

    @property
    def has_input_ancestor(self) -> bool:
        """Whether it is computed from an input, or is one."""
        return bool(self._graph.from_input[self.index])

    @property
    def min_distance_from_input(self) -> int | None:
        """The least number of steps from an input to it, None where it does not come from one."""
        return self._graph.distances_from_input.least[self.index]

    @property
    def max_distance_from_input(self) -> int | None:
        """The largest number of steps from an input to it, None where it does not come from one."""
        return self._graph.distances_from_input.most[self.index]

    @property
    def is_output_layer(self) -> bool:
        """Whether it is an output of the model."""
        return self.raw.kind == "output"

    @property
    def is_output_ancestor(self) -> bool:
        """Whether an output is computed from it, or it is one."""
        return bool(self._graph.to_output[self.index])

    @property
    def output_descendents(self) -> list[str]:
        """The outputs that are computed from it."""
        return self._where(descendants(self._graph.children, self.index), "output")

    @property
    def min_distance_from_output(self) -> int | None:
        """The least number of steps from it to an output, None where it leads to none."""
        return self._graph.distances_from_output.least[self.index]

    @property
    def max_distance_from_output(self) -> int | None:
        """The largest number of steps from it to an output, None where it leads to none."""
        return self._graph.distances_from_output.most[self.index]

    @property
    def is_buffer_layer(self) -> bool:
        """Whether it is a buffer of the model that was read."""
        return self.raw.kind == "buffer"

    @property
    def buffer_address(self) -> str | None:
        """The address of that buffer, None for anything else."""
        return self.raw.address if self.raw.kind == "buffer" else None

    @property
    def initialized_inside_model(self) -> bool:
        """Whether it is an operation without parents, such as ``torch.rand``."""
        return _is_initialized_inside(self.raw)

    @property
    def internally_initialized_parents(self) -> list[str]:
        """Those of its parents that are initialized inside of the model."""
        ops = self._graph.ops
        return self._labels(parent for parent in self.raw.parents if _is_initialized_inside(ops[parent]))

    @property
    def internally_initialized_ancestors(self) -> list[str]:
        """Those of its ancestors that are initialized inside of the model."""
        ops = self._graph.ops
        return self._labels(i for i in sorted(ancestors(ops, self.index)) if _is_initialized_inside(ops[i]))

    @property
    def terminated_inside_model(self) -> bool:
        """Whether nothing reads its value, and it is no output."""
        return not self._children and self.raw.kind != "output"

    @property
    def is_terminal_bool_layer(self) -> bool:
        """Whether it is a single boolean that no operation reads, as a condition is."""
        return self.index in self.history.conditions.terminal_bools

    @property
    def in_cond_branch(self) -> bool:
        """Whether it takes part in evaluating a condition, and in nothing else."""
        return self.index in self.history.conditions.evaluating

    @property
    def is_cond_branch_start(self) -> bool:
        """Whether the evaluation of a condition begins with it."""
        return self.index in self.history.conditions.starts

    @property
    def cond_branch_start_children(self) -> list[str]:
        """Those of its children with which the evaluation of a condition begins."""
        return self._labels(c for c in self._children if c in self.history.conditions.starts)

    @property
    def conditional_branches(self) -> list[tuple[str, str]]:
        """The branches that it ran in, outermost first: what was tested, and ``"then"`` or ``"else"``."""
        conditions = self.history.conditions
        return [(conditions[number].layer_label, branch) for number, branch in conditions.branches.get(self.index, ())]


class ValueFacts(Facts):
    """Labels, numbers and the value of an operation."""

    __slots__ = ()

    @property
    def layer_label(self) -> str:
        """The label of its layer, as in ``conv2d_3_7``."""
        return self._layer.label

    @property
    def layer_label_w_pass(self) -> str:
        """The label of its layer with the number of the pass, as in ``conv2d_3_7:1``."""
        return f"{self._layer.label}:{self.pass_num}"

    @property
    def operation_num(self) -> int:
        """How many tensor operations had run by it, itself included; inputs, buffers and outputs are none."""
        return self._graph.numbers[self.index]

    @property
    def layer_type(self) -> str:
        """The canonical name of the function, ``"input"``, ``"buffer"`` or ``"output"``."""
        return self._layer.layer_type

    @property
    def layer_type_num(self) -> int:
        """The how-manieth layer of its type it is, from 1."""
        return self._layer.type_number

    @property
    def layer_total_num(self) -> int:
        """The how-manieth layer it is, from 1; 0 for inputs and buffers, which are not counted."""
        return self._layer.total_number

    @property
    def pass_num(self) -> int:
        """Which pass of its layer it is, from 1."""
        return self._graph.pass_numbers[self.index]

    @property
    def layer_passes_total(self) -> int:
        """How many passes its layer has."""
        return len(self._layer.ops)

    @property
    def lookup_keys(self) -> list[str | int]:
        """All keys under which the history finds it."""
        return self.history.keys.of(self.index)

    @property
    def activation(self) -> Tensor | None:
        """The value as it was when the operation returned, None where it was not saved."""
        return self.raw.value

    @property
    def tensor_contents(self) -> Tensor | None:
        """The same as ``activation``."""
        return self.activation

    @property
    def tensor(self) -> Tensor | None:
        """The same as ``activation``."""
        return self.activation

    @property
    def transformed_activation(self) -> Tensor | None:
        """What ``activation_postfunc`` made of the value."""
        return self.raw.transformed

    @property
    def transformed_activation_shape(self) -> tuple[int, ...] | None:
        """The shape of ``transformed_activation``."""
        transformed = self.raw.transformed
        return None if transformed is None else tuple(transformed.shape)

    @property
    def has_saved_activations(self) -> bool:
        """Whether a value was saved, raw or transformed."""
        return self.raw.is_saved

    @property
    def not_saved_because(self) -> str:
        """Why no right copy could be made of a value that was asked for; empty where one could."""
        return self.raw.unsaved

    @property
    def gradient(self) -> Tensor | None:
        """The gradient that reached the value, the sum of several; None before a backward pass or without one."""
        return self._graph.capture.gradients.get(self.index)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient has reached the value."""
        return self.index in self._graph.capture.gradients

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The dimensions of the value."""
        return self.raw.shape

    @property
    def tensor_dtype(self) -> torch.dtype:
        """The data type of the value."""
        return self.raw.dtype

    @property
    def tensor_device(self) -> torch.device:
        """The device that the value was on."""
        return self.raw.device

    @property
    def tensor_fsize(self) -> int:
        """The size of the value in bytes."""
        return self.raw.nbytes

    @property
    def label(self) -> str:
        """The label of the fast path's event, as in ``relu_3``: the third relu outside of composites to run."""
        return self.raw.call.label

    @property
    def site(self) -> str:
        """The place in the model by which the fast path knows it, as in ``features.3/relu``."""
        return self.raw.call.site + (self.raw.path if self.raw.kind == "op" else "")


class Operation(ValueFacts, CallFacts, RelationFacts, ModuleFacts):
    """One operation of a pass: its value, what computed it, and where it stands in the graph and in the modules.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> relu = log_forward_pass(model, torch.ones(2, 4))["relu_1_2"]
    >>> relu.tensor_shape, relu.parent_layers, relu.containing_module_origin
    ((2, 8), ['linear_1_1'], '1:1')

    Made by a history, read from it by ``history[key]``.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return format_operation(self)

    __repr__ = __str__

    def records_in(self, recording: Recording) -> list[ActivationRecord]:
        """The records of a fast recording that hold this operation's value, those of modules included.

        >>> import torch, fastrec
        >>> from fastrec.graph import log_forward_pass
        >>> model, x = torch.nn.Sequential(torch.nn.Tanh()), torch.ones(2)
        >>> recording = fastrec.record(model, x, keep_op=True, keep_module=True)
        >>> [r.ctx.site for r in log_forward_pass(model, x)["tanh_1"].records_in(recording)]
        ['0/tanh', '0', ':out']
        """
        return [record for record in recording if self.history.finds(record) == self.index]

    def materialize_activation(self) -> Tensor | None:
        """The saved value, taken into memory for good where it lies in a file."""
        self.raw.value = self.raw.value
        return self.activation


_NOTHING: Any = object()


def _kept(item: Any) -> Any:
    """What is left of an argument without its tensors."""
    left = without_tensors(item)
    return _NOTHING if left is None and item is not None else left


def _is_initialized_inside(op: CapturedOp) -> bool:
    return op.kind == "op" and not op.parents
