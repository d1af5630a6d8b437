"""The record of one forward pass, as people read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import nn

from fastrec._errors import RecordKeyError, SessionError
from fastrec.events.capture import CaptureSpec
from fastrec.graph.conditions import Conditions
from fastrec.graph.diff import HistoryDiff, check_same_graph, diff_of
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.options import drawing_options
from fastrec.graph.drawing import drawing_of
from fastrec.graph.entries import (
    BufferEntry,
    ModuleEntry,
    ParameterEntry,
    Profile,
    buffers_of,
    modules_of,
    parameters_of,
    profile_of,
)
from fastrec.graph.files import HistoryContents, read_history, save_history
from fastrec.graph.lookup import Keys
from fastrec.graph.operation import Operation
from fastrec.graph.operations import LayerEntry, Operations, between
from fastrec.graph.pass_runner import PassRunner, SaveRequest
from fastrec.graph.raw import Capture, ModuleCall, OpKind, Parameter
from fastrec.graph.saving import Everything
from fastrec.graph.show import format_history
from fastrec.graph.structure import Graph
from fastrec.graph.tables import What, frame, graph_of, rows_of, write_csv, write_json, write_parquet
from fastrec.recording._records import ActivationRecord
from fastrec.session.inputs import NOT_GIVEN


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


class ModelHistory(HistoryFacts):
    """Everything that happened in one forward pass.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> history = log_forward_pass(model, torch.ones(2, 4))
    >>> history.layer_labels
    ['input_1', 'linear_1_1', 'relu_1_2', 'output_1']
    >>> history["relu_1"] == history[2] == history[-2] == history["1"]
    True

    Made by ``log_forward_pass``. A key is a label, with or without its total number and its pass (``relu_3_6``,
    ``relu_3``, ``relu_3:1``), the address of a module (what left it last), or an ordinal number among the operations
    whose values were saved, all of them where none was. A layer of several passes is a LayerEntry.
    """

    def __init__(self, capture: Capture, roots: Mapping[str, nn.Module], keeping: SaveRequest) -> None:
        self.graph = Graph(capture)
        self.roots = dict(roots)
        self._keeping = keeping

    def operation(self, index: int) -> Operation:
        """The operation with an index of the capture."""
        return Operation(self, index)  # not kept: it would hold the history that holds it

    @property
    def operations(self) -> Operations:
        """All operations in order, inputs, buffers and outputs included; narrowed by questions."""
        return Operations(self.operation(index) for index in self.graph.order)

    def between(self, start: str | int, end: str | int) -> Operations:
        """The operations on any path from one key to another, without these two.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2), torch.nn.Tanh())
        >>> log_forward_pass(model, torch.ones(1, 4)).between("0/linear", "tanh_1").labels
        ['relu_1_2', 'linear_2_3']

        Arguments:
            start, end: keys of the history, or sites of the fast path; a layer of several passes means all of them.
        """
        return Operations(
            self.operation(i) for i in between(self.keys.with_sites(start), self.keys.with_sites(end), self.graph)
        )

    def diff(self, other: ModelHistory) -> HistoryDiff:
        """Where another history differs: same model, two inputs, which operations are not the same.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> log_forward_pass(model, torch.ones(2, 4)).diff(log_forward_pass(model, torch.zeros(2, 4)))
        the same operations; 4 saved values differ

        Returns a HistoryDiff, which is false where both ran the same operations.
        """
        return diff_of(self.graph, other.graph)

    def to_networkx(self) -> Any:
        """The operations as a networkx graph: nodes by label, with the columns of the table of operations.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> graph = log_forward_pass(torch.nn.ReLU(), torch.ones(2)).to_networkx()
        >>> list(graph.edges(data="arguments"))
        [('input_1', 'relu_1_1', [0]), ('relu_1_1', 'output_1', [0])]

        An edge's ``arguments`` are the positions and keywords at which the value went in. Needs networkx.
        """
        return graph_of(self)

    def to_pandas(self, what: What = "operations") -> Any:
        """A pandas frame with a row for each operation, layer, module, parameter or buffer.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> history = log_forward_pass(torch.nn.Sequential(torch.nn.Linear(4, 8)), torch.ones(2, 4))
        >>> history.to_pandas("parameters").address.tolist()
        ['0.weight', '0.bias']

        Arguments:
            what: ``"operations"``, ``"layers"``, ``"modules"``, ``"parameters"`` or ``"buffers"``.
        """
        return frame(rows_of(self, what))

    def to_csv(self, path: str | PathLike[str], what: What = "operations") -> None:
        """Write such a table as comma-separated values; lists in cells are JSON."""
        write_csv(rows_of(self, what), Path(path))

    def to_json(self, path: str | PathLike[str], what: What = "operations") -> None:
        """Write such a table as a JSON list of objects."""
        write_json(rows_of(self, what), Path(path))

    def to_parquet(self, path: str | PathLike[str], what: What = "operations") -> None:
        """Write such a table as a parquet file; needs pyarrow."""
        write_parquet(rows_of(self, what), Path(path))

    def __len__(self) -> int:
        return len(self.numbered)

    def __iter__(self) -> Iterator[Operation]:
        return (self.operation(index) for index in self.numbered)

    def __getitem__(self, key: str | int) -> Operation | LayerEntry:
        found = self.keys.find(key)
        if len(found) == 1:
            return self.operation(found[0])
        layers = {id(self.graph.layer(index)) for index in found}
        if len(layers) == 1:
            return LayerEntry(self, self.graph.layer(found[0]))
        several = ", ".join(self.graph.label(index) for index in found)
        raise RecordKeyError(f"{key!r} names several operations: {several}; give the label of one")

    @cached_property
    def keys(self) -> Keys:
        """Finds operations by key."""
        return Keys(self.graph, self.numbered)

    def save_new_activations(
        self,
        input_args: Any = NOT_GIVEN,
        input_kwargs: Mapping[str, Any] | None = None,
        *,
        call: Callable[[], Any] | None = None,
        random_seed: int | None = None,
    ) -> None:
        """Run the model on new inputs, and hold their values in place of the old ones.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> history = log_forward_pass(torch.nn.ReLU(), torch.zeros(2))
        >>> history.save_new_activations(torch.ones(3))
        >>> history["relu_1"].activation
        tensor([1., 1., 1.])

        Arguments are those of log_forward_pass; what is saved, and how, stays. Raises GraphDifferenceError if the
        model runs other operations than before, and leaves the history as it was.
        """
        capture = PassRunner(self.roots, input_args, input_kwargs, call, random_seed)(self._keeping)
        check_same_graph(self.graph.capture, capture, remedy="log the new inputs with log_forward_pass")
        self._take(capture)

    def forget_all_but(self, wanted: set[int]) -> None:
        """Let go of the values of all other operations."""
        for op in self.graph.ops:
            if op.index not in wanted:
                op.value = op.transformed = None
        self._keeping = SaveRequest(wanted, self._keeping.spec)
        self._take(self.graph.capture)

    def _take(self, capture: Capture) -> None:
        """Tell of another capture from now on."""
        held = {"graph", "roots", "_keeping"}
        for name in [name for name in vars(self) if name not in held]:
            del self.__dict__[name]  # what was worked out from the old one
        self.graph = Graph(capture)

    def op_for(self, record: ActivationRecord) -> Operation:
        """The operation that a record of a fast recording is of.

        >>> import torch, fastrec
        >>> from fastrec.graph import log_forward_pass
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> x = torch.ones(2, 4)
        >>> recording = fastrec.record(model, x, keep_op="relu")
        >>> log_forward_pass(model, x).op_for(recording["relu_1"][0]).layer_label
        'relu_1_2'

        Arguments:
            record: a record of any engine and sink, from a pass that ran the same operations.
        """
        index = self._records.index_of(record.ctx)
        if index not in self.graph.positions:
            raise RecordKeyError(
                f"{record.ctx.label!r} at {record.ctx.site!r} is an orphan, which the graph leaves out: it neither "
                "comes from an input of the model nor leads to an output"
            )
        return self.operation(index)

    def drawing(self, **options: Any) -> Drawing:
        """The description of a drawing, from which pictures, texts and pages are made.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> drawing = log_forward_pass(torch.nn.Linear(4, 2), torch.ones(1, 4)).drawing()
        >>> [node.lines[0] for node in drawing.nodes]
        ['input_1', 'linear_1_1', 'output_1']

        Arguments:
            options: those of DrawingOptions: ``vis_mode``, ``vis_nesting_depth``, ``module``, ``fold_repeats`` and
                so on. Raises OptionError for one that does not exist.
        """
        return drawing_of(self, drawing_options(options))

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write the history to an HDF5 file with all tensors that it holds, for ``load_history``.

        >>> import tempfile, torch
        >>> from fastrec.graph import log_forward_pass
        >>> log_forward_pass(torch.nn.ReLU(), torch.ones(2)).save(tempfile.mkdtemp() + "/pass.h5")

        Arguments:
            path: of the new file.
            overwrite: take the place of a file that is there; else that is a RecordingExistsError.

        Functions are written by their names, arguments that are no plain data as they print, parameters without
        their values.
        """
        save_history(self.contents(), path, overwrite=overwrite)

    def contents(self) -> HistoryContents:
        """What a file holds of it."""
        return HistoryContents(self.model_name, self.graph.capture, self._parameters, self.conditions)

    def profile(self, by: Literal["operation", "module"] = "operation", *, sort: str = "seconds") -> Profile:
        """Where time and memory go, as a table sorted from the most.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> table = log_forward_pass(model, torch.ones(2, 4)).profile(sort="memory")
        >>> [(row.name, row.memory) for row in table]
        [('linear_1_1', 64), ('relu_1_2', 64)]

        Arguments:
            by: a row for each operation, or for each module with all that runs inside of it.
            sort: ``"seconds"`` of the functions, ``"memory"`` of their values in bytes, ``"parameters"`` in bytes, or
                ``"calls"``.

        Returns a Profile, a sequence of rows that prints as a table.
        """
        return profile_of(self.graph, by, sort)

    @cached_property
    def modules(self) -> dict[str, ModuleEntry]:
        """The modules that ran, by address, in the order in which they were first called."""
        return modules_of(self.graph, [parameter.address for parameter in self._parameters])

    @cached_property
    def parameters(self) -> dict[str, ParameterEntry]:
        """The parameters of the model, by address."""
        return parameters_of(self.graph, self._parameters)

    @cached_property
    def buffers(self) -> dict[str, BufferEntry]:
        """The buffers that were read, by address."""
        return buffers_of(self.graph)

    @property
    def layers(self) -> list[LayerEntry]:
        """All layers, in the order of their first passes."""
        return [LayerEntry(self, layer) for layer in self.graph.layers]

    def finds(self, record: ActivationRecord) -> int | None:
        """The index of the operation that a record is of, orphans included; None where there is none."""
        try:
            return self._records.index_of(record.ctx)
        except RecordKeyError:
            return None

    @cached_property
    def _records(self) -> RecordFinder:
        return RecordFinder(self.graph)

    def __str__(self) -> str:
        return format_history(self)

    __repr__ = __str__


class SavedHistory(ModelHistory):
    """A history without its model, read from a file."""

    def __init__(self, contents: HistoryContents) -> None:
        super().__init__(contents.capture, {}, SaveRequest(Everything(), CaptureSpec()))
        self._model_name = contents.model_name
        vars(self).update(_parameters=contents.parameters, conditions=contents.conditions)

    @property
    def model_name(self) -> str:
        """The name of the model's class."""
        return self._model_name

    def save_new_activations(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the model is not in the file."""
        raise SessionError(
            "this history was read from a file, which does not hold the model; log the pass again with log_forward_pass"
        )


def load_history(path: str | PathLike[str]) -> ModelHistory:
    """Read a history that ``ModelHistory.save`` or ``save_activations_to`` wrote; tensors are read when asked for.

    >>> import tempfile, torch
    >>> from fastrec.graph import load_history, log_forward_pass
    >>> path = tempfile.mkdtemp() + "/pass.h5"
    >>> log_forward_pass(torch.nn.ReLU(), torch.ones(2)).save(path)
    >>> load_history(path)["relu_1"].activation
    tensor([1., 1.])

    Nothing that is in the file is run. The model is not in it, so there are no functions (``func_applied`` is None),
    parameters have no values, and the pass can't be run again. Values are read anew each time, until
    ``materialize_activation`` takes one into memory.

    Raises RecordingNotFoundError, or DamagedFileError for a file that is no history.
    """
    return SavedHistory(read_history(path))


def _is_top(call: ModuleCall) -> bool:
    return call.parent is None or not call.parent.address


class RecordFinder:
    """Finds operations by what the fast path calls their events: site, label and leaf."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def index_of(self, ctx: Any) -> int:
        """The operation whose value an event is about, orphans included; RecordKeyError where there is none."""
        site, path = ctx.site, ctx.input_output_address or ""
        if ctx.kind in ("input", "buffer"):
            found = self._sources.get(site)
        elif ctx.kind == "op":
            found = self._ops.get((ctx.label.removesuffix(path), site.removesuffix(path), path))
        else:
            found = self._modules.get((ctx.kind, ctx.module_address, ctx.module_pass_index, path))
        if found is None:
            raise RecordKeyError(f"no operation of this history is the {ctx.kind} {ctx.label!r} at {site!r}")
        return found

    @cached_property
    def _sources(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for op in self._graph.ops:
            if op.kind in ("input", "buffer"):
                found.setdefault(op.call.site, op.index)
        return found

    @cached_property
    def _ops(self) -> dict[tuple[str, str, str], int]:
        found = dict(self._graph.capture.composites)
        found.update({(op.call.label, op.call.site, op.path): op.index for op in self._graph.ops if op.kind == "op"})
        return found

    @cached_property
    def _modules(self) -> dict[tuple[str, str, int, str], int]:
        found = {}
        for call in self._graph.capture.module_calls:
            for kind, leaves in (("module_enter", call.entered_at), ("module_exit", call.exited_at)):
                for path, op in leaves.items():
                    found[kind, call.address, call.number, path] = op
        return found
