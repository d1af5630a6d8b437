"""What a history tells of the model and the pass as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from torch import nn

from fastrec.graph._conditions import Conditions
from fastrec.graph._graph import Graph
from fastrec.graph._raw import ModuleCall, OpKind, Parameter


class HistoryFacts:
    """The model's facts; what counts operations includes inputs, buffers and outputs."""

    graph: Graph
    roots: dict[str, nn.Module]

    @cached_property
    def conditions(self) -> Conditions:
        """What is known of the conditions of the pass."""
        graph = self.graph
        return Conditions(graph.ops, graph.order, graph.children, graph.to_output, graph.capture.truths, graph.label)

    @cached_property
    def numbered(self) -> list[int]:
        """The operations that ordinal numbers count: the saved ones, all where none is."""
        ops = self.graph.ops
        saved = [i for i in self.graph.order if ops[i].is_saved]
        return saved or self.graph.order

    @property
    def model_name(self) -> str:
        """The name of the model's class."""
        return ", ".join(type(root).__name__ for root in self.roots.values())

    @property
    def random_seed_used(self) -> int:
        """The seed that was given, else the one that torch was last seeded with before the pass."""
        return self.graph.capture.seed

    @property
    def model_is_recurrent(self) -> bool:
        """Whether any layer has several passes."""
        return self.model_max_recurrent_loops > 1

    @property
    def model_max_recurrent_loops(self) -> int:
        """The most passes that any layer has."""
        return max((len(layer.ops) for layer in self.graph.layers), default=0)

    @property
    def model_is_branching(self) -> bool:
        """Whether the value of any operation is read by several."""
        return any(len(children) > 1 for children in self.graph.children.values())

    @property
    def model_has_conditional_branching(self) -> bool:
        """Whether a value that the model computed steered it."""
        return bool(self.conditions.tested)

    @property
    def layer_list(self) -> list[str]:
        """The labels of all layers."""
        return [layer.label for layer in self.graph.layers]

    @property
    def layer_labels(self) -> list[str]:
        """The labels of the saved operations, of all where none was saved; those that ordinal numbers count."""
        return [self.graph.label(index) for index in self.numbered]

    @property
    def input_layers(self) -> list[str]:
        """The inputs of the model."""
        return self._of_kind("input")

    @property
    def output_layers(self) -> list[str]:
        """The outputs of the model."""
        return self._of_kind("output")

    @property
    def buffer_layers(self) -> list[str]:
        """The buffers that were read."""
        return self._of_kind("buffer")

    def _of_kind(self, kind: OpKind) -> list[str]:
        return self._labels(i for i in self.graph.order if self.graph.ops[i].kind == kind)

    def _labels(self, indices: Iterable[int]) -> list[str]:
        return [self.graph.label(index) for index in indices]

    @property
    def internally_initialized_layers(self) -> list[str]:
        """The operations without parents, such as ``torch.rand``."""
        ops = self.graph.ops
        return self._labels(i for i in self.graph.order if ops[i].kind == "op" and not ops[i].parents)

    @property
    def internally_terminated_bool_layers(self) -> list[str]:
        """The single booleans that no operation reads, as conditions are."""
        return self._labels(sorted(self.conditions.terminal_bools))

    @property
    def layers_computed_with_params(self) -> list[str]:
        """The labels of the layers that use parameters."""
        ops = self.graph.ops
        return [layer.label for layer in self.graph.layers if ops[layer.ops[0]].call.parameters]

    @property
    def num_tensors_total(self) -> int:
        """How many values the pass computed, inputs, buffers and outputs included."""
        return len(self.graph.order)

    @property
    def tensor_fsize_total(self) -> int:
        """The size of those values in bytes."""
        return sum(self.graph.ops[i].nbytes for i in self.graph.order)

    @property
    def num_tensors_saved(self) -> int:
        """How many of those values were saved."""
        return len(self._saved)

    @property
    def tensor_fsize_saved(self) -> int:
        """The size of the saved tensors in bytes, transformed ones included."""
        ops = self.graph.ops
        return sum(ops[i].saved_bytes for i in self._saved)

    @cached_property
    def _saved(self) -> list[int]:
        ops = self.graph.ops
        return [i for i in self.graph.order if ops[i].is_saved]

    @cached_property
    def _parameters(self) -> list[Parameter]:
        """All parameters of the model, each once."""
        found: dict[int, Parameter] = {}
        for name, root in self.roots.items():
            prefix = f"{name}." if name else ""
            for address, tensor in root.named_parameters():
                found.setdefault(id(tensor), Parameter(prefix + address, tensor))
        return list(found.values())

    @property
    def total_param_tensors(self) -> int:
        """How many parameter tensors the model has."""
        return len(self._parameters)

    @property
    def total_param_layers(self) -> int:
        """How many layers use parameters."""
        return len(self.layers_computed_with_params)

    @property
    def total_params(self) -> int:
        """How many numbers the model's parameters hold."""
        return sum(p.tensor.numel() for p in self._parameters)

    @property
    def total_params_fsize(self) -> int:
        """The size of the model's parameters in bytes."""
        return sum(p.tensor.numel() * p.tensor.element_size() for p in self._parameters)

    @property
    def module_addresses(self) -> list[str]:
        """The addresses of the modules that ran, in the order in which they were first called."""
        return list(dict.fromkeys(call.address for call in self.graph.submodule_calls))

    @property
    def module_types(self) -> dict[str, str]:
        """The class of each of those modules."""
        return {call.address: call.kind for call in self.graph.submodule_calls}

    @property
    def module_num_passes(self) -> dict[str, int]:
        """How often each of them was called."""
        return dict(Counter(call.address for call in self.graph.submodule_calls))

    @property
    def module_pass_children(self) -> dict[str, list[str]]:
        """The module passes that ran directly inside of each module pass."""
        found: dict[str, list[str]] = {call.label: [] for call in self.graph.submodule_calls}
        for call in self.graph.submodule_calls:
            if call.parent is not None and call.parent.address:
                found[call.parent.label].append(call.label)
        return found

    @property
    def top_level_module_passes(self) -> list[str]:
        """The module passes that ran inside of no other."""
        return [call.label for call in self.graph.submodule_calls if _is_top(call)]

    @property
    def pass_start_time(self) -> float:
        """When the pass started, in seconds since the epoch."""
        return self.graph.capture.started

    @property
    def pass_end_time(self) -> float:
        """When the pass ended, in seconds since the epoch."""
        return self.graph.capture.ended

    @property
    def elapsed_time_total(self) -> float:
        """How long logging took from the call to the history, in seconds, the pass included."""
        return self.graph.capture.seconds

    @property
    def elapsed_time_function_calls(self) -> float:
        """How long the functions that computed the operations took together, in seconds."""
        calls: dict[int, Any] = {id(op.call): op.call for op in self.graph.ops}
        return float(sum(call.seconds for call in calls.values()))

    @property
    def elapsed_time_logging(self) -> float:
        """The rest of the time: the model's own Python and all of the logging, in seconds."""
        return self.elapsed_time_total - self.elapsed_time_function_calls


def _is_top(call: ModuleCall) -> bool:
    return call.parent is None or not call.parent.address
