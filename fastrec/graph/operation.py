"""One operation of a history: the attributes of the paper's Supplementary Table 1, and a few more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastrec._errors import RecordKeyError
from fastrec.graph.call_stack import FuncCallLocation, locations
from fastrec.graph.layers import Layer
from fastrec.graph.raw import CapturedOp, ConstantTensor, Overwritten, Parameter, Reference, filled, without_tensors
from fastrec.graph.show import format_module, format_value, listed, readable_size
from fastrec.graph.structure import Graph
from fastrec.recording._recording import Recording
from fastrec.recording._records import ActivationRecord


class Operation:
    """One operation of a pass: its value, what computed it, and its place in the graph and in the modules.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> relu = log_forward_pass(model, torch.ones(2, 4))["relu_1_2"]
    >>> relu.tensor_shape, relu.parent_layers, relu.containing_module_origin
    ((2, 8), ['linear_1_1'], '1:1')

    Made by a history, read from it by ``history[key]``. Lists of labels are in execution order. A module pass is
    written ``address:pass``; the model itself is not counted among the modules.
    """

    __slots__ = ("graph", "index")

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph = graph
        self.index = index

    @property
    def raw(self) -> CapturedOp:
        """What was captured."""
        return self.graph.ops[self.index]

    @property
    def _layer(self) -> Layer:
        return self.graph.layer(self.index)

    @property
    def _children(self) -> list[int]:
        return self.graph.children.get(self.index, [])

    def _labels(self, indices: Iterable[int]) -> list[str]:
        return [self.graph.label(index) for index in indices]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operation) and other.graph is self.graph and other.index == self.index

    def __hash__(self) -> int:
        return hash((id(self.graph), self.index))

    # Labels and numbers.

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
        """How many tensor operations had run by it, itself included; inputs, buffers and outputs do not count."""
        return self.graph.operation_numbers[self.index]

    @property
    def layer_type(self) -> str:
        """The canonical name of the function, or ``"input"``, ``"buffer"`` or ``"output"``."""
        return self._layer.layer_type

    @property
    def layer_type_num(self) -> int:
        """The number of its layer among the layers of its type, from 1."""
        return self._layer.type_number

    @property
    def layer_total_num(self) -> int:
        """The number of its layer among all layers, from 1; 0 for inputs and buffers, which are not counted."""
        return self._layer.total_number

    @property
    def pass_num(self) -> int:
        """Which pass of its layer it is, from 1."""
        return self.graph.pass_numbers[self.index]

    @property
    def layer_passes_total(self) -> int:
        """How many passes its layer has."""
        return len(self._layer.ops)

    @property
    def lookup_keys(self) -> list[str | int]:
        """All keys that find it in the history."""
        return self.graph.keys.keys_of(self.index)

    @property
    def label(self) -> str:
        """The label of the fast path's event: ``relu_3`` is the third relu that runs outside of composites."""
        return self.raw.call.label

    @property
    def site(self) -> str:
        """The place in the model by which the fast path knows it, as in ``features.3/relu``."""
        return self.raw.call.site + (self.raw.path if self.raw.kind == "op" else "")

    # The value.

    @property
    def activation(self) -> Tensor | None:
        """The value as it was when the operation returned, None if it was not saved."""
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
        stored = self.raw.stored_transform
        return None if stored is None else tuple(stored.shape)

    @property
    def has_saved_activations(self) -> bool:
        """Whether a value was saved, raw or transformed."""
        return self.raw.is_saved

    @property
    def not_saved_because(self) -> str:
        """Why a value that should have been saved could not be copied; empty if it could."""
        return self.raw.unsaved

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the value, summed over backward passes; None if none has reached it."""
        return self.graph.capture.gradients.get(self.index)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient has reached the value."""
        return self.index in self.graph.capture.gradients

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

    def materialize_activation(self) -> Tensor | None:
        """The saved value; one that is in a file is read into memory and stays there."""
        self.raw.value = self.raw.value
        return self.activation

    # The function, its arguments and its circumstances.

    @property
    def creation_args(self) -> tuple[Any, ...]:
        """The positional arguments; a tensor as it was then, or the label of its operation if it was not saved."""
        return tuple(filled(item, self._tensor_of) for item in self.raw.call.args)

    @property
    def creation_kwargs(self) -> dict[str, Any]:
        """The keyword arguments, like ``creation_args``."""
        return {key: filled(item, self._tensor_of) for key, item in self.raw.call.kwargs.items()}

    def _tensor_of(self, reference: Reference) -> Any:
        if isinstance(reference, Parameter):
            return reference.tensor
        if isinstance(reference, ConstantTensor):
            return reference if reference.value is None else reference.value
        value = reference.value if isinstance(reference, Overwritten) else self.graph.ops[reference.op].value
        return self.graph.label(reference.op) if value is None else value

    @property
    def func_applied(self) -> Callable[..., Any] | None:
        """The function that was called, None for inputs, buffers and outputs."""
        return self.raw.call.func

    @property
    def func_applied_name(self) -> str:
        """The name of that function in torch, empty for inputs, buffers and outputs."""
        return self.raw.call.func_name

    @property
    def func_time_elapsed(self) -> float:
        """How long the call took, in seconds."""
        return self.raw.call.seconds

    @property
    def func_rng_states(self) -> Mapping[str, Tensor]:
        """The states of the random generators before the call, by device, and of a generator among its arguments."""
        return self.raw.call.rng

    @property
    def func_position_args_non_tensor(self) -> list[Any]:
        """The positional arguments that are not tensors."""
        return [plain for item in self.raw.call.args if (plain := _less_tensors(item)) is not _NOTHING]

    @property
    def func_keyword_args_non_tensor(self) -> dict[str, Any]:
        """The keyword arguments that are not tensors."""
        items = ((key, _less_tensors(item)) for key, item in self.raw.call.kwargs.items())
        return {key: plain for key, plain in items if plain is not _NOTHING}

    @property
    def func_call_stack(self) -> list[FuncCallLocation]:
        """The lines of source that were running, outermost first."""
        return locations(self.raw.call.stack)

    @property
    def function_is_inplace(self) -> bool:
        """Whether the call wrote to one of its arguments."""
        return self.raw.call.inplace

    @property
    def gradfunc_name(self) -> str | None:
        """The name of the value's gradient function, None if it has none."""
        return self.raw.grad_fn

    @property
    def is_part_of_iterable_output(self) -> bool:
        """Whether the call returned several values in a tuple, list or dict, of which this is one."""
        return self.raw.output_index is not None

    @property
    def iterable_output_index(self) -> int | None:
        """Which of those it is, from 0; None if it is the only one."""
        return self.raw.output_index

    # The parameters among the arguments.

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
        return sum(parameter.nbytes for parameter in self.raw.call.parameters)

    # Other operations around it.

    @property
    def same_layer_operations(self) -> list[str]:
        """All passes of its layer, with their numbers, itself included."""
        return list(self.graph.passes[self._layer.label])

    @property
    def parent_layers(self) -> list[str]:
        """The operations whose values it read, in the order of its arguments."""
        return self._labels(self.raw.parents)

    @property
    def orig_ancestors(self) -> list[str]:
        """Its ancestors that have no parents."""
        ops = self.graph.ops
        return self._labels(i for i in sorted(self.graph.ancestors(self.index)) if not ops[i].parents)

    @property
    def child_layers(self) -> list[str]:
        """The operations that read its value."""
        return self._labels(self._children)

    @property
    def sibling_layers(self) -> list[str]:
        """Other operations that share a parent with it."""
        children = self.graph.children
        return self._labels(sorted({child for parent in self.raw.parents for child in children[parent]} - {self.index}))

    @property
    def spouse_layers(self) -> list[str]:
        """Other operations that share a child with it."""
        ops = self.graph.ops
        return self._labels(sorted({parent for i in self._children for parent in ops[i].parents} - {self.index}))

    # Inputs, outputs, buffers, and what begins or ends inside the model.

    @property
    def is_input_layer(self) -> bool:
        """Whether it is an input of the model."""
        return self.raw.kind == "input"

    @property
    def has_input_ancestor(self) -> bool:
        """Whether it depends on an input, or is one."""
        return bool(self.graph.from_input[self.index])

    @property
    def min_distance_from_input(self) -> int | None:
        """The smallest number of steps from an input to it, None if it does not depend on one."""
        return self.graph.distances_from_input.least[self.index]

    @property
    def max_distance_from_input(self) -> int | None:
        """The largest number of steps from an input to it, None if it does not depend on one."""
        return self.graph.distances_from_input.most[self.index]

    @property
    def is_output_layer(self) -> bool:
        """Whether it is an output of the model."""
        return self.raw.kind == "output"

    @property
    def is_output_ancestor(self) -> bool:
        """Whether an output depends on it, or it is one."""
        return bool(self.graph.to_output[self.index])

    @property
    def output_descendents(self) -> list[str]:
        """The outputs that depend on it."""
        ops = self.graph.ops
        return self._labels(i for i in sorted(self.graph.descendants(self.index)) if ops[i].kind == "output")

    @property
    def min_distance_from_output(self) -> int | None:
        """The smallest number of steps from it to an output, None if no output depends on it."""
        return self.graph.distances_from_output.least[self.index]

    @property
    def max_distance_from_output(self) -> int | None:
        """The largest number of steps from it to an output, None if no output depends on it."""
        return self.graph.distances_from_output.most[self.index]

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
        return self.raw.made_inside

    @property
    def internally_initialized_parents(self) -> list[str]:
        """Its parents that are initialized inside the model."""
        ops = self.graph.ops
        return self._labels(parent for parent in self.raw.parents if ops[parent].made_inside)

    @property
    def internally_initialized_ancestors(self) -> list[str]:
        """Its ancestors that are initialized inside the model."""
        ops = self.graph.ops
        return self._labels(i for i in sorted(self.graph.ancestors(self.index)) if ops[i].made_inside)

    @property
    def terminated_inside_model(self) -> bool:
        """Whether nothing reads its value although it is not an output."""
        return not self._children and self.raw.kind != "output"

    # Conditions.

    @property
    def is_terminal_bool_layer(self) -> bool:
        """Whether it is a single boolean that no operation reads, like the condition of an ``if``."""
        return self.index in self.graph.conditions.terminal_bools

    @property
    def in_cond_branch(self) -> bool:
        """Whether it is only used to evaluate a condition."""
        return self.index in self.graph.conditions.evaluating

    @property
    def is_cond_branch_start(self) -> bool:
        """Whether the evaluation of a condition starts with it."""
        return self.index in self.graph.conditions.starts

    @property
    def cond_branch_start_children(self) -> list[str]:
        """Its children with which the evaluation of a condition starts."""
        starts = self.graph.conditions.starts
        return self._labels(child for child in self._children if child in starts)

    @property
    def conditional_branches(self) -> list[tuple[str, str]]:
        """The branches that it ran in, outermost first: the tested operation, and ``"then"`` or ``"else"``."""
        conditions = self.graph.conditions
        return [(conditions[number].layer_label, branch) for number, branch in conditions.branches.get(self.index, ())]

    # Modules.

    @property
    def is_computed_inside_submodule(self) -> bool:
        """Whether it ran inside a submodule."""
        return self.containing_module_origin is not None

    @property
    def containing_module_origin(self) -> str | None:
        """The innermost module pass that it ran in, None for the model itself."""
        nested = self.containing_module_origin_nested
        return nested[-1] if nested else None

    @property
    def containing_module_origin_nested(self) -> list[str]:
        """All module passes that it ran in, outermost first."""
        return [call.label for call in self.raw.modules_around][::-1]

    @property
    def modules_entered(self) -> list[str]:
        """The module passes that its value went into."""
        return [call.label for call in self.graph.module_entries.get(self.index, ())]

    @property
    def is_submodule_output(self) -> bool:
        """Whether its value left a submodule."""
        return self.index in self.graph.module_exits

    @property
    def modules_exited(self) -> list[str]:
        """The module passes that its value left, in order."""
        return [call.label for call in self.graph.module_exits.get(self.index, ())]

    @property
    def is_bottom_level_submodule_output(self) -> bool:
        """Whether its value left a submodule in which no other operation ran."""
        return self.bottom_level_module is not None

    @property
    def bottom_level_module(self) -> str | None:
        """The module pass whose only operation it is, None if there is none."""
        call = self.raw.module
        if call is None or not call.address or call.ops != 1 or self.index not in call.exited:
            return None
        return call.label

    def records_in(self, recording: Recording) -> list[ActivationRecord]:
        """The records of a fast recording that hold this operation's value, including those of modules.

        >>> import torch, fastrec
        >>> from fastrec.graph import log_forward_pass
        >>> model, x = torch.nn.Sequential(torch.nn.Tanh()), torch.ones(2)
        >>> recording = fastrec.record(model, x, keep_op=True, keep_module=True)
        >>> [r.ctx.site for r in log_forward_pass(model, x)["tanh_1"].records_in(recording)]
        ['0/tanh', '0', ':out']
        """
        return [record for record in recording if self._is_of(record)]

    def _is_of(self, record: ActivationRecord) -> bool:
        try:
            return self.graph.records.index_of(record.ctx) == self.index
        except RecordKeyError:
            return False

    def __str__(self) -> str:
        total = self.graph.operation_numbers[self.graph.order[-1]]
        has_several = self.layer_passes_total > 1
        label = self.layer_label_w_pass if has_several else self.layer_label
        passes = f" (pass {self.pass_num}/{self.layer_passes_total})" if has_several else ""
        lines = [
            f"Layer {label}{passes}, operation {self.operation_num}/{total}:",
            f"Output tensor: shape={self.tensor_shape}, dtype={self.tensor_dtype}, "
            f"size={readable_size(self.tensor_fsize)}",
        ]
        value = self.activation
        if value is not None:
            lines += [f"    {line}" for line in format_value(value)]
        else:
            lines.append(f"    not saved: {self.not_saved_because}" if self.not_saved_because else "    not saved")
        if self.computed_with_params:
            shapes = ", ".join(map(str, self.parent_param_shapes))
            params = f"computed from params with shape {shapes}; {self.num_params_total} params total"
            lines.append(f"Params: {params} ({readable_size(self.parent_params_fsize)})")
        else:
            lines.append("Params: none")
        lines.append(f"Parent Layers: {listed(self.parent_layers)}")
        lines.append(f"Child Layers: {listed(self.child_layers)}")
        function = f"{self.func_applied_name} (grad_fn={self.gradfunc_name})"
        lines.append(f"Function: {'none' if self.func_applied is None else function}")
        if self.in_cond_branch:
            lines.append("Part of a condition")
        lines.append(f"Computed inside module: {format_module(self.containing_module_origin) or 'none'}")
        lines.append(f"Time elapsed: {self.func_time_elapsed:.3E}s")
        lines.append(f"Output of modules: {listed(map(format_module, self.modules_exited))}")
        lines.append(f"Output of bottom-level module: {format_module(self.bottom_level_module) or 'none'}")
        lines.append(f"Lookup keys: {listed(map(str, self.lookup_keys))}")
        return "\n    ".join(lines)

    __repr__ = __str__


_NOTHING: Any = object()  # None is an argument too


def _less_tensors(template: Any) -> Any:
    """An argument without its tensors."""
    left = without_tensors(template)
    return _NOTHING if left is None and template is not None else left
