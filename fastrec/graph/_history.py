"""The record of one forward pass, as people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import nn

from fastrec._errors import RecordKeyError
from fastrec.graph._diff import HistoryDiff, diff_of
from fastrec.graph._entries import (
    BufferEntry,
    ModuleEntry,
    ParameterEntry,
    buffers_of,
    modules_of,
    parameters_of,
)
from fastrec.graph._file_save import save_history
from fastrec.graph._graph import Graph
from fastrec.graph._history_facts import HistoryFacts
from fastrec.graph._history_show import shown
from fastrec.graph._keys import Keys
from fastrec.graph._layer import LayerEntry
from fastrec.graph._operation import Operation
from fastrec.graph._operations import Operations, between
from fastrec.graph._pass import Keeping, PassRunner
from fastrec.graph._profile import Profile, profile_of
from fastrec.graph._raw import Capture
from fastrec.graph._records import RecordFinder
from fastrec.graph._same_graph import check_same_graph
from fastrec.graph._tables import What, frame, graph_of, rows_of, write_csv, write_json, write_parquet
from fastrec.recording._records import ActivationRecord
from fastrec.session.inputs import NOT_GIVEN


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

    def __init__(self, capture: Capture, roots: Mapping[str, nn.Module], keeping: Keeping) -> None:
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
        self._keeping = Keeping(wanted, self._keeping.spec)
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
        save_history(self, path, overwrite=overwrite)

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
        return shown(self)

    __repr__ = __str__
