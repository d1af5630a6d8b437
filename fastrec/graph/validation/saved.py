"""Whether the values that a history saved are right, after the paper's section on validating activations.

From the outputs back to the roots, each operation is run again from the saved values of its parents. It has to give its
own saved value, which shows that values and functions are right; and other values in place of a parent should make
a difference, which shows that the edge is needed (``influence``). Beyond that:

- outputs are compared with those of a pass without logging;
- a value that was written through another view of its memory is not what any single call returns, so if there are such
  values the whole pass is run again, with memory shared as it was (``live_pass``).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fastrec._errors import OptionError
from fastrec._torch.state import random_state_restored, restored, seeded
from fastrec._torch.trees import argument_leaves, leaves
from fastrec.graph.history import ModelHistory
from fastrec.graph.log import log_forward_pass
from fastrec.graph.pass_runner import uncompiled
from fastrec.graph.raw import CapturedCall, CapturedOp, Overwritten, Ref, mapped
from fastrec.graph.structure import Graph
from fastrec.graph.validation.comparison import differs, largest_difference
from fastrec.graph.validation.influence import InfluenceCheck
from fastrec.graph.validation.live_pass import OverwrittenRead, overwritten_reads
from fastrec.graph.validation.replay import REFUSALS, UNINITIALISED, CannotReplay, Replayed, Replayer, parents_in
from fastrec.graph.validation.report import Exempted, Failure, Unchecked, ValidationReport
from fastrec.ops.facts import op_facts
from fastrec.session.inputs import NOT_GIVEN, args_of, roots_of


def validate_saved_activations(
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    random_seed: int | None = None,
) -> ValidationReport:
    """Log a forward pass with all its values, and check each of them.

    >>> import torch
    >>> from fastrec.graph import validate_saved_activations
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))
    >>> print(validate_saved_activations(model, torch.ones(2, 4)))
    Valid: 4 operations, 2 replayed (0 equal up to rounding), 2 parents replaced by other values

    The outputs are compared with those of a pass without logging. Then, from the outputs back to the roots, each
    operation is run again from the saved values of its parents and has to give its own saved value; and other values in
    place of each parent should make a difference. Where they make none, the report says why, or that this could not be
    decided. This takes the memory of all values and the time of several passes. Model and random state are as before.

    Arguments are those of log_forward_pass. With ``call`` there is no pass without logging to compare outputs with.
    Returns a ValidationReport, which is true or false as a value.
    """
    model = uncompiled(model, by_call=call is not None)
    roots = roots_of(model)
    with random_state_restored(), restored(roots.values()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pass runs twice, and would give its warnings twice
        if call is not None:
            return validate_history(log_forward_pass(model, call=call, random_seed=random_seed))
        versions = _parameter_versions(roots)
        outputs = _plain_outputs(roots, input_args, input_kwargs or {}, random_seed)
        writes_parameters = versions != _parameter_versions(roots)
        args = mapped(input_args, _copied)
        kwargs = mapped(dict(input_kwargs or {}), _copied)
        with random_state_restored():
            history = log_forward_pass(model, args, kwargs, random_seed=random_seed)
        constants = _constant_externals(history, input_args, input_kwargs or {}, random_seed)
        inputs = dict(argument_leaves(args_of(input_args, next(iter(roots.values()))), input_kwargs or {}))
        report = _validated(history, {} if writes_parameters else outputs, inputs, constants)
        if writes_parameters:
            why = "the pass writes to parameters, so that a second pass has other outputs"
            report.unchecked.append(Unchecked("outputs", why))
        return report


def validate_history(
    history: ModelHistory,
    *,
    outputs: Mapping[str, Tensor] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> ValidationReport:
    """Check the values of a history, as long as the model's parameters have not changed.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass, validate_history
    >>> history = log_forward_pass(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.ones(2, 4))
    >>> history["linear_1_1"].activation[0, 0] += 1
    >>> print(validate_history(history).first_failure)
    linear_1_1: run again from its saved parents it differs: 1 of 16 elements differ, by up to ... of the largest

    Arguments:
        history: a history with all values saved.
        outputs, inputs: the right outputs and inputs if you know them, by path: ``""`` for a single output, ``"[0]"``
            for the first input.

    Returns a ValidationReport.
    """
    ops = history.graph.ops
    missing = [i for i in history.graph.order if ops[i].stored_value is None and not ops[i].unsaved]
    if not history.roots:
        raise OptionError("validation runs functions again, and a history from a file has none; validate before saving")
    if missing:
        raise OptionError(
            f"validation needs all values, and that of {history.graph.label(missing[0])} was not saved; log the pass "
            "with layers_to_save='all'"
        )
    return _validated(history, outputs or {}, inputs or {}, frozenset())


def _validated(
    history: ModelHistory, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor], constants: Set[int]
) -> ValidationReport:
    with random_state_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Validation(history.graph, constants).run(outputs, inputs)


def _constant_externals(
    history: ModelHistory, input_args: Any, input_kwargs: Mapping[str, Any], seed: int | None
) -> Set[int]:
    """The operations of unknown origin that are the same for slightly other inputs.

    Whatever made them, they don't depend on what went in: the graph lacks no edge. With inputs that can't be changed a
    little, such as token ids, none is known to be constant.
    """
    externals = [op for op in history.graph.ops if op.call.layer_type == "external"]
    if not externals or not any(
        value.is_floating_point() for _, value in argument_leaves(args_of(input_args, history.roots[""]), input_kwargs)
    ):
        return frozenset()
    args, kwargs = mapped(input_args, _slightly_other), mapped(dict(input_kwargs), _slightly_other)
    with restored(history.roots.values()), random_state_restored():
        try:
            other = log_forward_pass(history.roots[""], args, kwargs, random_seed=seed).graph.ops
        except Exception:  # the user's model may raise anything for inputs that nobody has chosen
            return frozenset()
    if [op.call.layer_type for op in other] != [op.call.layer_type for op in history.graph.ops]:
        return frozenset()
    pairs = ((op.index, op.value, other[op.index].value) for op in externals)
    return {index for index, a, b in pairs if a is not None and b is not None and not differs(a, b)}


def _slightly_other(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.layout == torch.strided:
        return (leaf.detach() * 1.01 + 0.001).to(leaf.dtype).requires_grad_(leaf.requires_grad)
    return _copied(leaf)


def _plain_outputs(
    roots: Mapping[str, nn.Module], input_args: Any, input_kwargs: Mapping[str, Any], seed: int | None
) -> dict[str, Tensor]:
    """The outputs of a pass without logging; model, inputs and random state are as before."""
    root = next(iter(roots.values()))
    with restored(roots.values()), random_state_restored(), seeded(seed):
        out = root(*args_of(mapped(input_args, _copied), root), **mapped(dict(input_kwargs), _copied))
        return {path: value.detach().clone() for path, value in leaves(out)}


def _parameter_versions(roots: Mapping[str, nn.Module]) -> list[int]:
    parameters = (p for root in roots.values() for p in root.parameters())
    return [0 if isinstance(p, UninitializedParameter) or p.is_inference() else p._version for p in parameters]


def _copied(leaf: Any) -> Any:
    """A copy of an argument, which the model may write to."""
    if type(leaf) is Tensor and leaf.layout == torch.strided:
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return leaf


class _Validation:
    """Checks one history."""

    def __init__(self, graph: Graph, constants: Set[int]) -> None:
        self._graph = graph
        self._constants = constants
        self._ops = graph.ops
        self._replayer = Replayer(graph.ops)
        self._report = ValidationReport()
        self._failures: dict[int, str] = {}
        self._unchecked: dict[int, str] = {}
        self._influences = InfluenceCheck(self._replayer)
        self._unchecked_parents: list[Unchecked] = []
        self._results: dict[int, list[CapturedOp]] = defaultdict(list)  # the operations that one call made
        for index in graph.order:
            self._results[id(graph.ops[index].call)].append(graph.ops[index])

    def run(self, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> ValidationReport:
        """Check everything, from the outputs back."""
        checked: set[int] = set()
        for index in reversed(self._graph.order):
            op = self._ops[index]
            self._report.n_operations += 1
            if op.kind == "output":
                self._check_output(op, outputs.get(op.path))
            elif op.kind == "input":
                self._check_input(op, inputs.get(op.address))
            elif op.kind == "op" and id(op.call) not in checked:
                checked.add(id(op.call))
                self._check_call(op.call)
        for read in overwritten_reads(self._ops, self._graph.order):
            self._check_read(read)
        report = self._report
        output_class = self._graph.capture.output_class
        if output_class:
            self._unchecked_parents.append(
                Unchecked("outputs", f"no tensors were found in the {output_class} returned")
            )
        report.failures = [Failure("the pass", why) for why in dict.fromkeys(self._graph.capture.unseen)]
        report.failures += [Failure(self._graph.label(i), why) for i, why in sorted(self._failures.items())]
        report.unchecked = [Unchecked(self._graph.label(i), why) for i, why in sorted(self._unchecked.items())]
        report.unchecked += reversed(self._unchecked_parents)
        report.exempted.reverse()
        return report

    def _check_output(self, op: CapturedOp, right: Tensor | None) -> None:
        (template,) = op.call.args
        try:
            self._compare(op, self._replayer.value_of(template), "it is not what its parent was")
        except CannotReplay as problem:
            self._unchecked[op.index] = str(problem)
        if right is not None:
            self._compare(op, right, "it is not what the model returns")

    def _check_input(self, op: CapturedOp, right: Tensor | None) -> None:
        if right is not None:
            self._compare(op, right, "it is not the input that was given")

    def _check_call(self, call: CapturedCall) -> None:
        results = self._results[id(call)]
        if call.layer_type == "external" and any(op.index not in self._constants for op in results):
            why = (
                "it came into being in the pass, and no operation that was seen returned it: the graph is not complete"
            )
            self._failures.update({op.index: why for op in results})
            return
        parents = parents_in(call)
        try:
            replayed = self._replayer.run(call)
        except CannotReplay as problem:
            self._unchecked.update({op.index: str(problem) for op in results})
            return
        except REFUSALS as error:
            why = f"run again from its saved parents it raises {type(error).__name__}: {error}"
            self._failures.update({op.index: why for op in results})
            return
        self._report.n_replayed += 1
        if not self._is_named_right(call):
            why = f"it is called {call.layer_type}, and the function that it names is {call.func!r}"
            self._failures.update({op.index: why for op in results})
        for op in results:
            self._check_replayed(op, replayed)
            self._check_parents(op, parents)
        self._check_buffers(call, replayed)
        if not any(op.index in self._failures for op in results):
            for parent in parents:
                self._check_influence(call, parent, replayed, self._graph.label(results[0].index))

    def _is_named_right(self, call: CapturedCall) -> bool:
        assert call.func is not None
        facts = op_facts(call.func)
        return facts is None or facts.layer_type == call.layer_type

    def _check_replayed(self, op: CapturedOp, replayed: Replayed) -> None:
        value = replayed.values.get(op.path)
        if op.value is None:
            self._unchecked[op.index] = f"its value was not saved: {op.unsaved}"
        elif op.call.layer_type in UNINITIALISED and value is not None and value.shape == op.shape:
            rule = "uninitialised"
            why = "uninitialised memory has no right value; shape and dtype were checked"
            self._report.exempted.append(Exempted(self._graph.label(op.index), "", rule, why))
        elif value is None:
            self._failures[op.index] = "run again from its saved parents its call does not return it"
        elif isinstance(largest_difference(op.value, value), str) and self._varies(op, value):
            self._unchecked[op.index] = "run again from its saved parents it gives another value each time"
        else:
            self._compare(op, value, "run again from its saved parents it differs")

    def _varies(self, op: CapturedOp, value: Tensor) -> bool:
        """Whether a call gives other values in two runs, because it depends on more than its arguments."""
        again = self._replayer.run(op.call).values.get(op.path)
        return again is None or isinstance(largest_difference(value, again), str)

    def _check_parents(self, op: CapturedOp, in_arguments: Mapping[int, Ref | Overwritten]) -> None:
        expected = tuple(in_arguments)
        writers = tuple(w for how in in_arguments.values() if isinstance(how, Overwritten) for w in how.written_by)
        if op.parents != expected and not (writers and set(op.parents) == {*expected, *writers}):
            names = ", ".join(map(self._graph.label, op.parents)) or "none"
            why = f"the parents that it names ({names}) are not those in its arguments"
            self._failures.setdefault(op.index, why)

    def _check_buffers(self, call: CapturedCall, replayed: Replayed) -> None:
        """Check buffers that a call wrote to, such as the statistics of a batch norm, and that were read later."""
        if not call.inplace:
            return
        results = {op.index for op in self._results[id(call)]}
        arguments = ((self._ops[source], value) for source, value in replayed.arguments.items() if type(source) is int)
        written = {op.address: value for op, value in arguments if op.address}
        for index in self._graph.order:
            op = self._ops[index]
            if op.kind == "buffer" and results.intersection(op.parents) and op.address in written:
                self._compare(op, written[op.address], f"it is not what {call.layer_type} wrote")

    def _compare(self, op: CapturedOp, right: Tensor, what: str) -> None:
        value = op.value
        if value is None:
            self._unchecked[op.index] = f"its value was not saved: {op.unsaved}"
        else:
            self._note(op, largest_difference(value, right), what)

    def _note(self, op: CapturedOp, difference: str | float, what: str) -> None:
        if isinstance(difference, str):
            self._failures.setdefault(op.index, f"{what}: {difference}")
        elif difference:
            self._report.n_inexact += 1
            self._report.largest_difference = max(self._report.largest_difference, difference)

    def _check_read(self, read: OverwrittenRead) -> None:
        parent = self._graph.label(read.parent)
        difference = largest_difference(read.read, read.replayed)
        if isinstance(difference, str) and not read.shares_memory:
            why = "it was written through memory that it shared with a tensor from outside of the pass"
            self._unchecked_parents.append(Unchecked(self._graph.label(read.op.index), why, parent))
        else:
            self._note(read.op, difference, f"what it read of {parent}, after writes through other views, differs")

    def _check_influence(self, call: CapturedCall, parent: int, replayed: Replayed, name: str) -> None:
        """Put other values in place of one parent, which should make a difference."""
        self._report.n_perturbed += 1
        influence = self._influences.of(call, parent, replayed)
        if influence.kind == "exempted":
            self._report.exempted.append(Exempted(name, self._graph.label(parent), influence.rule, influence.why))
        elif influence.kind == "unchecked":
            self._unchecked_parents.append(Unchecked(name, influence.why, self._graph.label(parent)))
