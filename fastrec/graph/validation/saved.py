"""Whether the values that a history saved are right, after the paper's section on validating activations.

From the outputs back to the roots, each operation is run again from the saved values of its parents. It has to give its
own saved value, which shows that values and functions are right; and with random values in place of a parent it has to
give another value, which shows that the edge is needed. Beyond that:

- outputs are compared with those of a pass without logging;
- a value that was written through another view of its memory is not what any single call returns, so if there are such
  values the whole pass is run again, with memory shared as it was (``_LivePass``).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrec._errors import OptionError
from fastrec._torch.state import random_state_restored, restored, seeded
from fastrec._torch.trees import argument_leaves, leaves
from fastrec.graph.history import ModelHistory
from fastrec.graph.log import log_forward_pass
from fastrec.graph.pass_runner import uncompiled
from fastrec.graph.raw import CapturedCall, CapturedOp, Overwritten, Ref, Reference, filled, flat, mapped
from fastrec.graph.structure import Graph
from fastrec.graph.validation.exemptions import Trial, exemption
from fastrec.graph.validation.replay import (
    REFUSALS,
    UNINITIALISED,
    CannotReplay,
    Replayed,
    Replayer,
    circumstances_of,
    differs,
    largest_difference,
    parents_in,
    replacements,
)
from fastrec.graph.validation.report import Exempted, Failure, Unchecked, ValidationReport
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
    Valid: 4 operations, 2 replayed (0 equal up to rounding), 2 parents replaced by random values

    The outputs are compared with those of a pass without logging. Then, from the outputs back to the roots, each
    operation is run again from the saved values of its parents and has to give its own saved value; and with random
    values in place of each parent it has to give another value, except where the report names an exemption. This takes
    the memory of all values and the time of several passes. Model and random state are as before.

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
        history = log_forward_pass(model, args, kwargs, random_seed=random_seed)
        inputs = dict(argument_leaves(args_of(input_args), input_kwargs or {}))
        report = validate_history(history, outputs={} if writes_parameters else outputs, inputs=inputs)
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
    with random_state_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Validation(history.graph).run(outputs or {}, inputs or {})


def _plain_outputs(
    roots: Mapping[str, nn.Module], input_args: Any, input_kwargs: Mapping[str, Any], seed: int | None
) -> dict[str, Tensor]:
    """The outputs of a pass without logging; model, inputs and random state are as before."""
    root = next(iter(roots.values()))
    with restored(roots.values()), random_state_restored(), seeded(seed):
        out = root(*args_of(mapped(input_args, _copied)), **mapped(dict(input_kwargs), _copied))
        return {path: value.detach().clone() for path, value in leaves(out)}


def _parameter_versions(roots: Mapping[str, nn.Module]) -> list[int]:
    parameters = (p for root in roots.values() for p in root.parameters())
    return [0 if p.is_inference() else p._version for p in parameters]


def _copied(leaf: Any) -> Any:
    """A copy of an argument, which the model may write to."""
    if type(leaf) is Tensor and leaf.layout == torch.strided:
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return leaf


class _Validation:
    """Checks one history."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._ops = graph.ops
        self._replayer = Replayer(graph.ops)
        self._report = ValidationReport()
        self._failures: dict[int, str] = {}
        self._unchecked: dict[int, str] = {}
        self._generator = torch.Generator().manual_seed(0)
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
        for read in _overwritten_reads(self._ops, self._graph.order):
            what = f"what it read of {self._graph.label(read.parent)}, after writes through other views, differs"
            self._note(read.op, largest_difference(read.read, read.replayed), what)
        report = self._report
        report.failures = [Failure(self._graph.label(i), why) for i, why in sorted(self._failures.items())]
        report.unchecked = [Unchecked(self._graph.label(i), why) for i, why in sorted(self._unchecked.items())]
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
        for op in results:
            self._check_replayed(op, replayed)
            self._check_parents(op, parents)
        self._check_buffers(call, replayed)
        for parent in parents:
            self._perturb(call, parent, results)

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
        else:
            self._compare(op, value, "run again from its saved parents it differs")

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
        written = {self._ops[i].address: value for i, value in replayed.arguments.items() if self._ops[i].address}
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

    def _perturb(self, call: CapturedCall, parent: int, results: list[CapturedOp]) -> None:
        """Put random values in place of one parent: the result has to change, unless a rule says why not."""
        value = self._replayer.value_of(parents_in(call)[parent])
        self._report.n_perturbed += 1
        for replacement in replacements(value, call.layer_type, self._generator):
            try:
                changed = self._replayer.run(call, {parent: replacement})
            except REFUSALS:  # it accepts the saved value and refuses another, so it reads the value
                return
            if any(self._is_changed(op, changed) for op in results):
                return
        rule = exemption(self._trial(call, parent, value, results))
        names = self._graph.label(results[0].index), self._graph.label(parent)
        if rule is None:
            self._failures.setdefault(results[0].index, f"random values in place of {names[1]} give the same result")
        else:
            self._report.exempted.append(Exempted(*names, rule.name, rule.why))

    def _is_changed(self, op: CapturedOp, replayed: Replayed) -> bool:
        saved, value = op.value, replayed.values.get(op.path)
        return saved is None or value is None or differs(saved, value)

    def _trial(self, call: CapturedCall, parent: int, value: Tensor, results: list[CapturedOp]) -> Trial:
        def tensor(reference: Reference) -> Tensor:
            is_parent = isinstance(reference, Ref | Overwritten) and reference.op == parent
            return value if is_parent else self._replayer.value_of(reference)

        args = [filled(item, tensor) for item in call.args]
        kwargs = {key: filled(item, tensor) for key, item in call.kwargs.items()}
        arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        place = next(name for name, argument in arguments if any(leaf is value for leaf in flat(argument)))
        saved = [result for op in results if (result := op.value) is not None]
        return Trial(call.layer_type, call.inplace, place, value, args, kwargs, saved)


class _OverwrittenRead(NamedTuple):
    """A call that read a value after a write through another view: what it read, and what running again gives."""

    op: CapturedOp
    parent: int
    read: Tensor
    replayed: Tensor


def _overwritten_reads(ops: Sequence[CapturedOp], order: Sequence[int]) -> Iterator[_OverwrittenRead]:
    """All reads of values after writes through other views, with what they give in a pass that is run again."""
    if any(isinstance(how, Overwritten) for index in order for how in parents_in(ops[index].call).values()):
        yield from _LivePass(ops).run(order)


class _LivePass:
    """A pass that is run again as a whole, on tensors that share memory as they did.

    Each function gets the tensors that earlier functions returned in this run, instead of copies of saved values. So
    views are views again, and a write through one of them shows in the others.
    """

    def __init__(self, ops: Sequence[CapturedOp]) -> None:
        self._ops = ops
        self._saved = Replayer(ops)
        self._values: dict[int, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._other_tensors: dict[int, Tensor] = {}
        self._returned: dict[int, dict[str, Tensor]] = {}  # by call

    def run(self, order: Sequence[int]) -> Iterator[_OverwrittenRead]:
        """Run everything again, and yield each read of a value that was overwritten."""
        for index in order:
            op = self._ops[index]
            for parent, how in parents_in(op.call).items():
                if isinstance(how, Overwritten) and how.value is not None and parent in self._values:
                    yield _OverwrittenRead(op, parent, how.value, self._values[parent].detach().clone())
            value = self._value(op)
            if value is None and (saved := op.value) is not None:
                value = saved.clone()
            if value is not None:
                self._values[index] = value
                if op.kind == "buffer":
                    self._buffers[op.address] = value

    def _value(self, op: CapturedOp) -> Tensor | None:
        """The value of an operation, run again; None if the saved one has to stand in."""
        if op.kind == "buffer":
            return self._buffers.get(op.address)
        if op.kind != "op":
            return None
        if id(op.call) not in self._returned:
            self._returned[id(op.call)] = self._run(op.call)
        value = self._returned[id(op.call)].get(op.path)
        if op.call.layer_type in UNINITIALISED and value is not None and (saved := op.value) is not None:
            value.copy_(saved)
        return value

    def _run(self, call: CapturedCall) -> dict[str, Tensor]:
        """What a call returns, by path; empty if it can't be run, and the saved values have to stand in."""
        if not callable(call.func) or isinstance(call.func, nn.Module):
            return {}
        try:
            args = tuple([filled(item, self._tensor) for item in call.args])
            kwargs = {key: filled(item, self._tensor) for key, item in call.kwargs.items()}
            with circumstances_of(call, kwargs):
                out = call.func(*args, **kwargs)
        except (CannotReplay, *REFUSALS):
            return {}
        return dict(leaves(args[0] if out is None and args else out))

    def _tensor(self, reference: Reference) -> Tensor:
        if isinstance(reference, Ref | Overwritten):
            value = self._values.get(reference.op)
            return self._saved.value_of(reference) if value is None else value
        if id(reference) not in self._other_tensors:
            self._other_tensors[id(reference)] = self._saved.value_of(reference).clone()
        return self._other_tensors[id(reference)]
