"""Proof that what a history saved is right, after the paper's section on validating the accuracy of activations."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrec._errors import OptionError
from fastrec._torch.state import random_state_restored, restored, seeded
from fastrec._torch.trees import argument_leaves, leaves
from fastrec.graph.history import ModelHistory
from fastrec.graph.log import log_forward_pass
from fastrec.graph.pass_runner import uncompiled
from fastrec.graph.raw import (
    CapturedCall,
    CapturedOp,
    ConstantTensor,
    Overwritten,
    Parameter,
    Ref,
    filled,
    flat,
    mapped,
)
from fastrec.graph.validation.exemptions import Trial, exemption
from fastrec.graph.validation.replay import (
    REFUSALS,
    UNINITIALISED,
    CannotReplay,
    Replayed,
    Replayer,
    as_it_was,
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
    """Log a forward pass with all its values, and check every one of them.

    >>> import torch
    >>> from fastrec.graph import validate_saved_activations
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))
    >>> print(validate_saved_activations(model, torch.ones(2, 4)))
    Valid: 4 operations, 2 replayed (0 equal up to rounding), 2 parents replaced by random values

    The outputs are compared with those of a pass that nobody watches. Then, from the outputs back to the roots, each
    operation is run again from the saved values of its parents and must give its own saved value; and with random
    values in place of each parent it must give another one, but for the exemptions that the report names. It takes
    the memory of all values, and the time of several passes. Model and random state are as before.

    Arguments are those of log_forward_pass. With ``call`` there is no pass beside the logged one.
    Returns a ValidationReport, which is true or false.
    """
    model = uncompiled(model, by_call=call is not None)
    roots = roots_of(model)
    with random_state_restored(), restored(roots.values()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pass is run twice, and its warnings would be, too
        if call is not None:
            history = log_forward_pass(model, call=call, random_seed=random_seed)
            return validate_history(history)
        before = _parameter_versions(roots)
        truth = _plain_pass(roots, input_args, input_kwargs or {}, random_seed)
        writes = before != _parameter_versions(roots)
        args = mapped(input_args, _copied)
        kwargs = mapped(dict(input_kwargs or {}), _copied)
        history = log_forward_pass(model, args, kwargs, random_seed=random_seed)
        given = {path: value for path, value in argument_leaves(args_of(input_args), input_kwargs or {})}
        report = validate_history(history, outputs={} if writes else truth, inputs=given)
        if writes:
            why = "the pass writes to parameters, so that one that nobody watches gives others"
            report.unchecked.append(Unchecked("outputs", why))
        return report


def validate_history(
    history: ModelHistory,
    *,
    outputs: Mapping[str, Tensor] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> ValidationReport:
    """Check the values that a history saved, while the model's parameters are what they were.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass, validate_history
    >>> history = log_forward_pass(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.ones(2, 4))
    >>> history["linear_1_1"].activation[0, 0] += 1
    >>> print(validate_history(history).first_failure)
    linear_1_1: run again from its saved parents it differs: 1 of 16 elements differ, by up to ... of the largest

    Arguments:
        history: one that saved all values.
        outputs: the right outputs, by path (``""`` for a single tensor), and ``inputs`` likewise (``"[0]"``), where
            they are known.

    Returns a ValidationReport.
    """
    ops = history.graph.ops
    missing = [i for i in history.graph.order if ops[i].stored_value is None and not ops[i].unsaved]
    if not history.roots:
        raise OptionError("validation runs functions again, and a history from a file has none; validate before saving")
    if missing:
        raise OptionError(
            f"validation takes all values, and that of {history.graph.label(missing[0])} was not saved; log the pass "
            "with layers_to_save='all'"
        )
    with random_state_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Validation(history).run(outputs or {}, inputs or {})


def _plain_pass(
    roots: Mapping[str, nn.Module], input_args: Any, input_kwargs: Mapping[str, Any], seed: int | None
) -> dict[str, Tensor]:
    """The outputs of a pass that nobody watches; model, inputs and random state are as before."""
    root = next(iter(roots.values()))
    with restored(roots.values()), random_state_restored(), seeded(seed):
        out = root(*args_of(mapped(input_args, _copied)), **mapped(dict(input_kwargs), _copied))
        return {path: value.detach().clone() for path, value in leaves(out)}


def _parameter_versions(roots: Mapping[str, nn.Module]) -> list[int]:
    parameters = (p for root in roots.values() for p in root.parameters())
    return [0 if p.is_inference() else p._version for p in parameters]


def _copied(leaf: Any) -> Any:
    """An argument that the model may write to."""
    if type(leaf) is Tensor and leaf.layout == torch.strided:
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return leaf


class _Validation:
    """Checks one history."""

    def __init__(self, history: ModelHistory) -> None:
        self._graph = history.graph
        self._ops = history.graph.ops
        self._replayer = Replayer(self._ops)
        self._report = ValidationReport()
        self._failed: dict[int, str] = {}
        self._unchecked: dict[int, str] = {}
        self._generator = torch.Generator().manual_seed(0)
        self._results: dict[int, list[CapturedOp]] = defaultdict(list)  # the operations that one call made
        for index in self._graph.order:
            self._results[id(self._ops[index].call)].append(self._ops[index])

    def run(self, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> ValidationReport:
        done: set[int] = set()
        for index in reversed(self._graph.order):  # children before their parents
            op = self._ops[index]
            self._report.n_operations += 1
            if op.kind == "output":
                self._check_output(op, outputs)
            elif op.kind == "input":
                self._check_root(op, inputs.get(op.address))
            elif op.kind == "op" and id(op.call) not in done:
                done.add(id(op.call))
                self._check_call(op.call)
        for read in stale_reads(self._ops, self._graph.order):
            what = f"what it read of {self._graph.label(read.parent)}, after writes through other views, is not there"
            self._note(read.op, largest_difference(read.read, read.found), what)
        report = self._report
        report.failures = [Failure(self._graph.label(i), why) for i, why in sorted(self._failed.items())]
        report.unchecked = [Unchecked(self._graph.label(i), why) for i, why in sorted(self._unchecked.items())]
        report.exempted.reverse()
        return report

    def _check_output(self, op: CapturedOp, outputs: Mapping[str, Tensor]) -> None:
        (template,) = op.call.args
        try:
            self._compare(op, self._replayer.value_of(template), "it is not what its parent was")
        except CannotReplay as problem:
            self._unchecked[op.index] = str(problem)
        right = outputs.get(op.path)
        if right is not None:
            self._compare(op, right, "it is not what the model returns")

    def _check_root(self, op: CapturedOp, right: Tensor | None) -> None:
        if right is not None:
            self._compare(op, right, "it is not the input that was given")

    def _check_call(self, call: CapturedCall) -> None:
        results = self._results[id(call)]
        parents = parents_in(call)
        try:
            replayed = self._replayer.run(call)
        except CannotReplay as problem:
            for op in results:
                self._unchecked[op.index] = str(problem)
            return
        except REFUSALS as error:
            for op in results:
                self._failed[op.index] = f"run again from its saved parents it raises {type(error).__name__}: {error}"
            return
        self._report.n_replayed += 1
        for op in results:
            self._check_replayed(op, replayed)
            self._check_parents(op, parents)
        self._check_rewritten(call, replayed)
        for parent in parents:
            self._perturb(call, parent, results)

    def _check_replayed(self, op: CapturedOp, replayed: Replayed) -> None:
        found = replayed.values.get(op.path)
        if op.value is None:
            self._unchecked[op.index] = f"its value was not saved: {op.unsaved}"
        elif op.call.layer_type in UNINITIALISED and found is not None and found.shape == op.shape:
            rule = "uninitialised"
            why = "memory that nobody has written has no right value; its form was checked"
            self._report.exempted.append(Exempted(self._graph.label(op.index), "", rule, why))
        elif found is None:
            self._failed[op.index] = "run again from its saved parents its call does not return it"
        else:
            self._compare(op, found, "run again from its saved parents it differs")

    def _check_parents(self, op: CapturedOp, parents: Mapping[int, Any]) -> None:
        told = tuple(parents)
        written = tuple(w for how in parents.values() if isinstance(how, Overwritten) for w in how.written_by)
        if op.parents != told and not (written and set(op.parents) == {*told, *written}):
            names = ", ".join(map(self._graph.label, op.parents)) or "none"
            self._failed.setdefault(op.index, f"the parents that it names ({names}) are not those in its arguments")

    def _check_rewritten(self, call: CapturedCall, replayed: Replayed) -> None:
        """What a call wrote beside its result, as a batch norm writes statistics, is what was read later."""
        if not call.inplace:
            return
        made = {op.index for op in self._results[id(call)]}
        addresses = {self._ops[i].address: value for i, value in replayed.arguments.items() if self._ops[i].address}
        for index in self._graph.order:
            op = self._ops[index]
            if op.kind == "buffer" and made.intersection(op.parents) and op.address in addresses:
                self._compare(op, addresses[op.address], f"it is not what {call.layer_type} wrote")

    def _compare(self, op: CapturedOp, right: Tensor, what: str) -> None:
        if op.value is None:
            self._unchecked[op.index] = f"its value was not saved: {op.unsaved}"
            return
        self._note(op, largest_difference(op.value, right), what)

    def _note(self, op: CapturedOp, found: str | float, what: str) -> None:
        if isinstance(found, str):
            self._failed.setdefault(op.index, f"{what}: {found}")
        elif found:
            self._report.n_inexact += 1
            self._report.largest_difference = max(self._report.largest_difference, found)

    def _perturb(self, call: CapturedCall, parent: int, results: list[CapturedOp]) -> None:
        """Put random values in place of one parent: the result has to change, or a rule says why not."""
        value = self._replayer.value_of(parents_in(call)[parent])
        self._report.n_perturbed += 1
        for other in replacements(value, call.layer_type, self._generator):
            try:
                changed = self._replayer.run(call, {parent: other})
            except REFUSALS:  # it accepts the saved value and refuses another, so it reads it
                return
            if any(self._differs(op, changed) for op in results):
                return
        rule = exemption(self._trial(call, parent, value, results))
        if rule is None:
            why = f"random values in place of {self._graph.label(parent)} give the same result"
            self._failed.setdefault(results[0].index, why)
        else:
            names = self._graph.label(results[0].index), self._graph.label(parent)
            self._report.exempted.append(Exempted(*names, rule.name, rule.why))

    def _differs(self, op: CapturedOp, changed: Replayed) -> bool:
        found = changed.values.get(op.path)
        return op.value is None or found is None or differs(op.value, found)

    def _trial(self, call: CapturedCall, parent: int, value: Tensor, results: list[CapturedOp]) -> Trial:
        def tensor(reference: Any) -> Any:
            return value if getattr(reference, "op", None) == parent else self._replayer.value_of(reference)

        args = [filled(item, tensor) for item in call.args]
        kwargs = {key: filled(item, tensor) for key, item in call.kwargs.items()}
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        place = next(name for name, item in places if _holds(item, value))
        saved = [op.value for op in results if op.value is not None]
        return Trial(call.layer_type, call.inplace, place, value, args, kwargs, saved)


def _holds(item: Any, value: Tensor) -> bool:
    return any(leaf is value for leaf in flat(item))


class OverwrittenRead:
    """A call that read a value which another view had written to: what it read, and what running again gives."""

    def __init__(self, op: CapturedOp, parent: int, read: Tensor, found: Tensor) -> None:
        self.op = op
        self.parent = parent
        self.read = read
        self.found = found


def stale_reads(ops: Sequence[CapturedOp], order: Sequence[int]) -> Iterator[OverwrittenRead]:
    """All reads of values that were written through other views, each run again from the roots of the pass."""
    if any(isinstance(how, Overwritten) for index in order for how in parents_in(ops[index].call).values()):
        yield from _LivePass(ops).run(order)


class _LivePass:
    """The tensors of a pass that is run again."""

    def __init__(self, ops: Sequence[CapturedOp]) -> None:
        self._ops = ops
        self._saved = Replayer(ops)
        self._live: dict[int, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._others: dict[int, Tensor] = {}
        self._done: dict[int, dict[str, Tensor]] = {}  # what each call returned

    def run(self, order: Sequence[int]) -> Iterator[OverwrittenRead]:
        for index in order:
            op = self._ops[index]
            for parent, how in parents_in(op.call).items():
                if isinstance(how, Overwritten) and how.value is not None and parent in self._live:
                    yield OverwrittenRead(op, parent, how.value, self._live[parent].detach().clone())
            value = self._value(op)
            if value is None and op.value is not None:
                value = op.value.clone()
            if value is not None:
                self._live[index] = value
                if op.kind == "buffer":
                    self._buffers[op.address] = value

    def _value(self, op: CapturedOp) -> Tensor | None:
        """The value of an operation, run again; None where the saved one is to stand in."""
        if op.kind == "buffer":
            return self._buffers.get(op.address)
        if op.kind != "op":
            return None
        if id(op.call) not in self._done:
            self._done[id(op.call)] = self._call(op.call)
        value = self._done[id(op.call)].get(op.path)
        if op.call.layer_type in UNINITIALISED and value is not None and op.value is not None:
            value.copy_(op.value)
        return value

    def _call(self, call: CapturedCall) -> dict[str, Tensor]:
        """What a call returns; nothing where it cannot be run, and the saved values stand in."""
        if not callable(call.func) or isinstance(call.func, torch.nn.Module):
            return {}
        try:
            args = tuple([filled(item, self._tensor) for item in call.args])
            kwargs = {key: filled(item, self._tensor) for key, item in call.kwargs.items()}
            with as_it_was(call, kwargs):
                out = call.func(*args, **kwargs)
        except (CannotReplay, *REFUSALS):
            return {}
        return dict(leaves(args[0] if out is None and args else out))

    def _tensor(self, reference: Ref | Overwritten | Parameter | ConstantTensor) -> Tensor:
        if isinstance(reference, Ref | Overwritten):
            if reference.op in self._live:
                return self._live[reference.op]
            return self._saved.value_of(reference)
        if id(reference) not in self._others:
            self._others[id(reference)] = self._saved.value_of(reference).clone()
        return self._others[id(reference)]
