"""The history of one forward pass: attributes of the model as a whole, and access to everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import Any

import msgspec
from torch import nn

from fastrec._errors import OptionError, RecordKeyError, SessionError
from fastrec._optional import require
from fastrec.dryrun.dry_run import dry_run_in_region
from fastrec.events.capture import CaptureSpec
from fastrec.graph.conditions import Conditions
from fastrec.graph.diff import HistoryDiff, check_same_graph, diff_of
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.notebook import notebook_html
from fastrec.graph.draw.options import drawing_options
from fastrec.graph.draw.page import write_drawing
from fastrec.graph.draw.picture import SECONDS, Picture, draw
from fastrec.graph.drawing import ModelFacts, drawing_of
from fastrec.graph.entries import (
    BufferEntry,
    ModuleEntry,
    ParameterEntry,
    Profile,
    ProfileBy,
    buffers_of,
    modules_of,
    parameters_of,
    profile_of,
)
from fastrec.graph.files import HistoryContents, read_history, save_history
from fastrec.graph.lookup import selectors_of
from fastrec.graph.operation import Operation
from fastrec.graph.operations import LayerEntry, Operations
from fastrec.graph.pass_runner import PassRunner
from fastrec.graph.previews import Preview
from fastrec.graph.raw import Capture, OpKind, Parameter
from fastrec.graph.rows import ALL_COLUMNS, Row, entry_rows, frame, operation_rows
from fastrec.graph.saving import Everything, SaveRequest, check_gradients
from fastrec.graph.show import format_hierarchy, readable_size
from fastrec.graph.structure import Graph
from fastrec.graph.tables import (
    Table,
    frame_of_objects,
    layer_rows,
    module_rows,
    networkx_graph,
    with_json_cells,
)
from fastrec.graph.validation.report import ValidationReport
from fastrec.graph.viewers import export_drawing
from fastrec.recording._records import ActivationRecord
from fastrec.session.inputs import NOT_GIVEN


class ModelHistory:
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
    ``relu_3``, ``relu_3:1``), the address of a module (which finds what the module returned), or an ordinal number
    among the saved operations, or among all of them if none was saved. A layer of several passes is a LayerEntry.
    Counts of operations include inputs, buffers and outputs.
    """

    def __init__(self, capture: Capture, roots: Mapping[str, nn.Module], request: SaveRequest) -> None:
        self.graph = Graph(capture)
        self.roots = dict(roots)
        self._request = request
        self._from_file: HistoryContents | None = None

    @classmethod
    def of_file(cls, contents: HistoryContents) -> ModelHistory:
        """A history without its model, which the file does not hold."""
        history = cls(contents.capture, {}, SaveRequest(Everything(), CaptureSpec()))
        history.graph = Graph(contents.capture, contents.conditions)
        history._from_file = contents
        return history

    # Operations and layers.

    @property
    def operations(self) -> Operations:
        """All operations in order, inputs, buffers and outputs included; narrowed by questions."""
        return self._operations(self.graph.order)

    def _operations(self, indices: Iterable[int]) -> Operations:
        return Operations(Operation(self.graph, index) for index in indices)

    @property
    def layers(self) -> list[LayerEntry]:
        """All layers, in the order of their first passes."""
        return [LayerEntry(self.graph, layer) for layer in self.graph.layers]

    def __len__(self) -> int:
        return len(self.graph.numbered)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations(self.graph.numbered))

    def __getitem__(self, key: str | int) -> Operation | LayerEntry:
        indices = self.graph.keys.find(key)
        if len(indices) == 1:
            return Operation(self.graph, indices[0])
        layer = self.graph.layer(indices[0])
        if all(self.graph.layer(index) is layer for index in indices):
            return LayerEntry(self.graph, layer)
        labels = ", ".join(map(self.graph.label, indices))
        raise RecordKeyError(f"{key!r} names several operations: {labels}; give the label of one")

    def between(self, start: str | int, end: str | int) -> Operations:
        """The operations on any path from one key to another, without the two themselves.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2), torch.nn.Tanh())
        >>> log_forward_pass(model, torch.ones(1, 4)).between("0/linear", "tanh_1").labels
        ['relu_1_2', 'linear_2_3']

        Arguments:
            start, end: keys of the history, or sites of the fast path; for a layer of several passes, all of them.
        """
        keys = self.graph.keys
        return self._operations(self.graph.between(keys.find_with_sites(start), keys.find_with_sites(end)))

    def op_for(self, record: ActivationRecord) -> Operation:
        """The operation whose value a record of a fast recording holds.

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
        index = self.graph.records.index_of(record.ctx)
        if index not in self.graph.positions:
            raise RecordKeyError(
                f"{record.ctx.label!r} at {record.ctx.site!r} is an orphan, which the graph leaves out: it neither "
                "depends on an input of the model nor leads to an output"
            )
        return Operation(self.graph, index)

    # Attributes of the paper's Supplementary Table 1.

    @property
    def model_name(self) -> str:
        """The name of the model's class."""
        if self._from_file is not None:
            return self._from_file.model_name
        return ", ".join(type(root).__name__ for root in self.roots.values())

    @property
    def random_seed_used(self) -> int | None:
        """The ``random_seed`` of the pass; None if none was given, when no seed is known to bring the same numbers."""
        return self.graph.capture.seed

    @property
    def model_is_recurrent(self) -> bool:
        """Whether any layer has several passes."""
        return self.model_max_recurrent_loops > 1

    @property
    def model_max_recurrent_loops(self) -> int:
        """The largest number of passes of any layer."""
        return max((len(layer.ops) for layer in self.graph.layers), default=0)

    @property
    def model_is_branching(self) -> bool:
        """Whether the value of any operation is read by several operations."""
        return any(len(children) > 1 for children in self.graph.children.values())

    @property
    def model_has_conditional_branching(self) -> bool:
        """Whether the model computed a condition, on which its control flow may depend."""
        return bool(self.conditions.tested)

    @property
    def conditions(self) -> Conditions:
        """The conditions of the pass, as far as known."""
        return self.graph.conditions

    @property
    def layer_list(self) -> list[str]:
        """The labels of all layers."""
        return [layer.label for layer in self.graph.layers]

    @property
    def layer_labels(self) -> list[str]:
        """The labels of the saved operations, or of all if none was saved: what ordinal numbers count."""
        return self._labels(self.graph.numbered)

    @property
    def input_layers(self) -> list[str]:
        """The inputs of the model."""
        return self._labels_of_kind("input")

    @property
    def output_layers(self) -> list[str]:
        """The outputs of the model."""
        return self._labels_of_kind("output")

    @property
    def buffer_layers(self) -> list[str]:
        """The buffers that were read."""
        return self._labels_of_kind("buffer")

    def _labels_of_kind(self, kind: OpKind) -> list[str]:
        return self._labels(i for i in self.graph.order if self.graph.ops[i].kind == kind)

    def _labels(self, indices: Iterable[int]) -> list[str]:
        return [self.graph.label(index) for index in indices]

    @property
    def internally_initialized_layers(self) -> list[str]:
        """The operations without parents, such as ``torch.rand``."""
        return self._labels(i for i in self.graph.order if self.graph.ops[i].made_inside)

    @property
    def internally_terminated_bool_layers(self) -> list[str]:
        """The single booleans that no operation reads, like the conditions of ``if``."""
        return self._labels(sorted(self.conditions.terminal_bools))

    @property
    def layers_computed_with_params(self) -> list[str]:
        """The labels of the layers that use parameters."""
        ops = self.graph.ops
        return [layer.label for layer in self.graph.layers if ops[layer.ops[0]].call.parameters]

    @property
    def num_tensors_total(self) -> int:
        """How many values the pass has, including inputs, buffers and outputs."""
        return len(self.graph.order)

    @property
    def tensor_fsize_total(self) -> int:
        """The size of those values in bytes."""
        return sum(self.graph.ops[i].nbytes for i in self.graph.order)

    @property
    def num_tensors_saved(self) -> int:
        """How many of those values were saved."""
        return len(self.graph.saved)

    @property
    def tensor_fsize_saved(self) -> int:
        """The size of the saved tensors in bytes, including transformed ones."""
        return sum(self.graph.ops[i].saved_bytes for i in self.graph.saved)

    @cached_property
    def _parameters(self) -> Sequence[Parameter]:
        """All parameters of the model, each once."""
        if self._from_file is not None:
            return self._from_file.parameters
        parameters: dict[int, Parameter] = {}
        for name, root in self.roots.items():
            prefix = f"{name}." if name else ""
            for address, tensor in root.named_parameters():
                parameters.setdefault(id(tensor), Parameter(prefix + address, tensor))
        return list(parameters.values())

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
        return sum(parameter.tensor.numel() for parameter in self._parameters)

    @property
    def total_params_fsize(self) -> int:
        """The size of the model's parameters in bytes."""
        return sum(parameter.nbytes for parameter in self._parameters)

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
        """The module passes directly inside each module pass."""
        children: dict[str, list[str]] = {call.label: [] for call in self.graph.submodule_calls}
        for call in self.graph.submodule_calls:
            if call.parent is not None and call.parent.address:
                children[call.parent.label].append(call.label)
        return children

    @property
    def top_level_module_passes(self) -> list[str]:
        """The module passes that are inside no other."""
        calls = self.graph.submodule_calls
        return [call.label for call in calls if call.parent is None or not call.parent.address]

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
        """How long logging took in seconds, from the call to the finished history, including the pass."""
        return self.graph.capture.seconds

    @property
    def elapsed_time_function_calls(self) -> float:
        """The time spent in the functions that computed the operations, in seconds."""
        calls = {id(op.call): op.call for op in self.graph.ops}
        return float(sum(call.seconds for call in calls.values()))

    @property
    def elapsed_time_logging(self) -> float:
        """The rest of the time, in seconds: the model's own Python code, and logging."""
        return self.elapsed_time_total - self.elapsed_time_function_calls

    # Modules, parameters, buffers, and where time and memory go.

    @cached_property
    def modules(self) -> dict[str, ModuleEntry]:
        """The modules that ran, by address, in the order in which they were first called."""
        return modules_of(self.graph, self._parameters)

    @cached_property
    def parameters(self) -> dict[str, ParameterEntry]:
        """The parameters of the model, by address."""
        return parameters_of(self.graph, self._parameters)

    @cached_property
    def buffers(self) -> dict[str, BufferEntry]:
        """The buffers that were read, by address."""
        return buffers_of(self.graph)

    def profile(self, by: ProfileBy = "operation", *, sort: str = "seconds") -> Profile:
        """Where time and memory go, as a sorted table.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> table = log_forward_pass(model, torch.ones(2, 4)).profile(sort="memory")
        >>> [(row.name, row.memory) for row in table]
        [('linear_1_1', 64), ('relu_1_2', 64)]

        Arguments:
            by: one row for each operation, or for each module with everything that ran inside it.
            sort: ``"seconds"`` spent in functions, ``"memory"`` of their values in bytes, ``"parameters"`` in bytes, or
                ``"calls"``; the largest comes first.

        Returns a Profile, a sequence of rows that prints as a table.
        """
        return profile_of(self.graph, by, sort)

    # New inputs, other histories, other forms.

    def save_new_activations(
        self,
        input_args: Any = NOT_GIVEN,
        input_kwargs: Mapping[str, Any] | None = None,
        *,
        call: Callable[[], Any] | None = None,
        layers_to_save: str | int | Sequence[str | int] | None = NOT_GIVEN,
        random_seed: int | None = None,
        train_mode: bool = False,
    ) -> None:
        """Run the model on new inputs, and replace the old values by the new ones.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> history = log_forward_pass(torch.nn.ReLU(), torch.zeros(2))
        >>> history.save_new_activations(torch.ones(3))
        >>> history["relu_1"].activation
        tensor([1., 1., 1.])

        Arguments are those of log_forward_pass. Without ``layers_to_save`` the selection stays the same; its keys are
        those of this history. Raises GraphDifferenceError if the model runs other operations than before; the history
        is then unchanged.
        """
        if self._from_file is not None:
            raise SessionError(
                "this history was read from a file, which does not hold the model; log the pass again with "
                "log_forward_pass"
            )
        check_gradients(train_mode=train_mode)
        request = self._request
        if layers_to_save is not NOT_GIVEN:
            selected = self.graph.keys.select(selectors_of(layers_to_save)) if layers_to_save != "all" else Everything()
            request = msgspec.structs.replace(request, which=selected or ())
        if train_mode:
            request = msgspec.structs.replace(request, spec=msgspec.structs.replace(request.spec, keep_grad=True))
        capture = PassRunner(self.roots, input_args, input_kwargs, call, random_seed)(request)
        check_same_graph(self.graph.capture, capture, remedy="log the new inputs with log_forward_pass")
        self._request = msgspec.structs.replace(request, spec=self._request.spec)
        self._replace(capture)

    def forget_all_but(self, which: set[int]) -> None:
        """Drop the values of all other operations."""
        for op in self.graph.ops:
            if op.index not in which:
                op.value = op.transformed = None
        self._request = SaveRequest(which, self._request.spec)
        self._replace(self.graph.capture)

    def _replace(self, capture: Capture) -> None:
        self.graph.replace(capture)
        for name in ("modules", "parameters", "buffers"):
            vars(self).pop(name, None)  # worked out from the old capture

    def diff(self, other: ModelHistory) -> HistoryDiff:
        """How another history of the same model differs, for instance one on another input.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> log_forward_pass(model, torch.ones(2, 4)).diff(log_forward_pass(model, torch.zeros(2, 4)))
        the same operations; 4 saved values differ

        Returns a HistoryDiff, which is false if both ran the same operations.
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
        return networkx_graph(self.model_name, self.operations)

    def to_pandas(self, what: Table = "operations") -> Any:
        """A pandas frame with a row for each operation, layer, module, parameter or buffer.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> history = log_forward_pass(torch.nn.Sequential(torch.nn.Linear(4, 8)), torch.ones(2, 4))
        >>> history.to_pandas("parameters").address.tolist()
        ['0.weight', '0.bias']

        Arguments:
            what: ``"operations"`` (with all their attributes, values and arguments included), ``"layers"``,
                ``"modules"``, ``"parameters"`` or ``"buffers"``.
        """
        return frame(operation_rows(self.operations, ALL_COLUMNS) if what == "operations" else self._rows(what))

    def to_csv(self, path: str | PathLike[str], what: Table = "operations") -> None:
        """Write such a table as comma-separated values; lists in cells are JSON. Needs pandas."""
        frame_of_objects(with_json_cells(self._rows(what))).to_csv(path, index=False)

    def to_json(self, path: str | PathLike[str], what: Table = "operations") -> None:
        """Write such a table as a JSON list of objects. Needs pandas."""
        frame_of_objects(self._rows(what)).to_json(path, orient="records", indent=1, double_precision=15)

    def to_parquet(self, path: str | PathLike[str], what: Table = "operations") -> None:
        """Write such a table as a parquet file. Needs pandas and pyarrow."""
        require("pyarrow.parquet", extra="parquet", what="to_parquet()")
        frame_of_objects(self._rows(what)).to_parquet(path, engine="pyarrow")

    def _rows(self, what: Table) -> list[Row]:
        if what == "operations":
            return operation_rows(self.operations)
        if what == "layers":
            return layer_rows(self.layers)
        if what == "modules":
            return module_rows(self.modules.values(), self.profile("module"))
        if what == "parameters":
            return entry_rows(self.parameters.values())
        if what == "buffers":
            return entry_rows(self.buffers.values())
        tables = ("operations", "layers", "modules", "parameters", "buffers")
        raise OptionError(f"{what!r} is not a table of a history; there are {', '.join(map(repr, tables))}")

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
        addresses = [
            f"{name}.{address}" if name and address else name or address
            for name, root in self.roots.items()
            for address, _ in root.named_modules()
        ]
        return drawing_of(
            self.graph, ModelFacts(self.model_name, self._parameters, addresses), drawing_options(options)
        )

    def draw(
        self,
        path: str | PathLike[str] | None = None,
        *,
        format: str | None = None,
        seconds: float = SECONDS,
        overwrite: bool = False,
        **options: Any,
    ) -> Picture:
        """Draw the graph.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> history = log_forward_pass(torch.nn.Linear(4, 2), torch.ones(1, 4))
        >>> '"linear_1_1" -> "output_1"' in history.draw(format="dot").text
        True

        Arguments are those of show_model_graph. Returns a Picture, which notebooks show.
        """
        return draw(lambda: self.drawing(**options), path, format, seconds=seconds, overwrite=overwrite)

    def to_html(
        self,
        path: str | PathLike[str],
        *,
        overwrite: bool = False,
        validation: ValidationReport | None = None,
        **options: Any,
    ) -> None:
        """Write a page of the graph: one file that opens from disk, to open modules, search, and see what costs.

        >>> import tempfile, torch
        >>> from fastrec.graph import log_forward_pass
        >>> log_forward_pass(torch.nn.ReLU(), torch.ones(2)).to_html(tempfile.mkdtemp() + "/relu.html")

        Arguments:
            path: of the new file.
            overwrite: take the place of a file that is there; else that is a RecordingExistsError.
            validation: what validating the history reported, for a badge on the page.
            options: ``vis_mode``, ``module``, ``buffers``, ``show_checks``, ``show_orphans``, ``show_backward`` as for
                show_model_graph. All levels of modules are on the page.

        Raises OptionError for a graph of more than 20,000 operations.
        """
        validated = None if validation is None else bool(validation)
        write_drawing(lambda: self.drawing(**options), path, validated=validated, overwrite=overwrite)

    def preview(
        self,
        input_args: Any = NOT_GIVEN,
        input_kwargs: Mapping[str, Any] | None = None,
        *,
        call: Callable[[], Any] | None = None,
        **recorder_options: Any,
    ) -> Preview:
        """Run the model once more, and show on this graph what a recorder with these options would keep of such a pass.

        >>> import torch
        >>> from fastrec.graph import log_forward_pass
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh()), torch.zeros(2, 4)
        >>> log_forward_pass(model, x).preview(x, keep_op="tanh").kept
        ['1/tanh']

        Arguments are those of fastrec.dry_run, less the model; a ``call`` is one pass, as in the graph. Where the pass
        takes another way through the model than the one that was logged, what is kept there is counted below the title
        of the picture. Raises OptionError for a history from a file, which has no model.
        """
        if not self.roots:
            raise OptionError(
                "a history from a file has no model to run; call fastrec.graph.preview(model, inputs, keep_op=...)"
            )
        model: Any = self.roots if list(self.roots) != [""] else self.roots[""]
        return Preview(self, dry_run_in_region(model, input_args, input_kwargs, call, recorder_options))

    def export(
        self, path: str | PathLike[str], format: str | None = None, *, overwrite: bool = False, **options: Any
    ) -> None:
        """Write the graph as a file of another viewer.

        >>> import tempfile, torch
        >>> from fastrec.graph import log_forward_pass
        >>> history = log_forward_pass(torch.nn.ReLU(), torch.ones(2))
        >>> history.export(tempfile.mkdtemp() + "/trace.json", "chrome-trace")

        Arguments:
            path: of the new file.
            format: ``"model-explorer"`` (JSON), ``"onnx"`` (for netron, without weights; extra ``onnx``), ``"graphml"``
                (extra ``networkx``) or ``"chrome-trace"`` (JSON for Perfetto; times are those of torch's functions,
                laid end to end). None takes it from the ending ``.onnx`` or ``.graphml``.
            overwrite: take the place of a file that is there; else that is a RecordingExistsError.
            options: ``vis_mode``, ``module``, ``buffers``, ``show_checks``, ``show_orphans`` as for show_model_graph.
        """
        export_drawing(lambda: self.drawing(**options), path, format, overwrite=overwrite)

    def _repr_html_(self) -> str | None:
        hint = "history.to_html('model.html') writes a page of it, in which modules open"
        pictures = (notebook_html(self.drawing(vis_mode=mode), hint) for mode in ("unrolled", "rolled"))
        return next((picture for picture in pictures if picture is not None), None)

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write the history to an HDF5 file with all tensors that it holds, for ``load_history``.

        >>> import tempfile, torch
        >>> from fastrec.graph import log_forward_pass
        >>> log_forward_pass(torch.nn.ReLU(), torch.ones(2)).save(tempfile.mkdtemp() + "/pass.h5")

        Arguments:
            path: of the new file.
            overwrite: replace an existing file, which is a RecordingExistsError otherwise.

        Functions are stored by name, arguments that are not plain data as their repr, and parameters without values.
        """
        save_history(self.contents(), path, overwrite=overwrite)

    def contents(self) -> HistoryContents:
        """The parts of the history that a file holds."""
        return HistoryContents(self.model_name, self.graph.capture, self._parameters, self.conditions)

    def __str__(self) -> str:
        graph, top = self.graph, self.top_level_module_passes
        lines = [
            f"Log of {self.model_name} forward pass:",
            f"    Model structure: {self._structure()}; {len(self.module_addresses)} total modules.",
            f"    {self.num_tensors_total} tensors ({readable_size(self.tensor_fsize_total)}) computed in forward "
            f"pass; {self.num_tensors_saved} tensors ({readable_size(self.tensor_fsize_saved)}) saved.",
            f"    {self.total_param_layers} parameter operations ({self.total_params} params total; "
            f"{readable_size(self.total_params_fsize)}).",
            f"    Random seed: {'none given' if self.random_seed_used is None else self.random_seed_used}",
            f"    Time elapsed: {self.elapsed_time_total:.3f}s",
            "    Module Hierarchy:",
            *format_hierarchy(top, self.module_pass_children, self.module_num_passes, depth=2),
            "    Layers:" if self.num_tensors_saved else "    Layers (no values saved):",
        ]
        for number, index in enumerate(graph.numbered):
            count = len(graph.layer(index).ops)
            passes = f" ({graph.pass_numbers[index]}/{count} passes)" if count > 1 else ""
            lines.append(f"        {number}: {graph.label(index)}{passes}")
        return "\n".join(lines)

    __repr__ = __str__

    def _structure(self) -> str:
        loops = self.model_max_recurrent_loops
        parts = [f"recurrent (at most {loops} loops)" if self.model_is_recurrent else "purely feedforward"]
        parts.append("with branching" if self.model_is_branching else "without branching")
        if self.model_has_conditional_branching:
            parts.append("with conditional (if-then) branching")
        return ", ".join(parts)


def load_history(path: str | PathLike[str]) -> ModelHistory:
    """Read a history that ``ModelHistory.save`` or ``save_activations_to`` wrote; tensors are read on demand.

    >>> import tempfile, torch
    >>> from fastrec.graph import load_history, log_forward_pass
    >>> path = tempfile.mkdtemp() + "/pass.h5"
    >>> log_forward_pass(torch.nn.ReLU(), torch.ones(2)).save(path)
    >>> load_history(path)["relu_1"].activation
    tensor([1., 1.])

    Nothing in the file is run. The file does not hold the model, so functions are missing (``func_applied`` is None),
    parameters have no values, and the pass can't be run again. Values are read from the file at each access, until
    ``materialize_activation`` loads one into memory.

    Raises RecordingNotFoundError, or DamagedFileError for a file that is not a history.
    """
    return ModelHistory.of_file(read_history(path))
