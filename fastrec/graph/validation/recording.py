"""Whether a fast recording has the same operations and values as the graph of the same pass.

Recording and graph are made by different code that has little more than the model in common. So where they agree,
either both are right, or both are wrong in the same way.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from fastrec._errors import OptionError, PredicateError, RecordKeyError
from fastrec._torch.state import random_state_restored, restored
from fastrec.dryrun.dry_run import dry_run
from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.events.context import PASS_FIELDS, RecordContext
from fastrec.graph.log import log_forward_pass
from fastrec.graph.pass_runner import uncompiled
from fastrec.graph.structure import Graph
from fastrec.graph.validation.comparison import largest_difference
from fastrec.graph.validation.replay import UNINITIALISED
from fastrec.graph.validation.report import Failure, Unchecked, ValidationReport
from fastrec.recording._header import predicates_of
from fastrec.recording._recording import ActivationRecord, Recording
from fastrec.session.inputs import NOT_GIVEN, roots_of
from fastrec.sinks._copying import parts_of
from fastrec.sinks.hdf5.catalog_log import StoredTransform


def validate_recording(  # noqa: PLR0913
    model: nn.Module | Mapping[str, nn.Module],
    recording: Recording,
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    pass_index: int | None = None,
    random_seed: int | None = None,
    tolerance: float | None = None,
) -> ValidationReport:
    """Check one pass of a recording, of any engine and any sink, against the graph of the same pass.

    >>> import torch, fastrec
    >>> from fastrec.graph import validate_recording
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> x = torch.ones(2, 4)
    >>> recording = fastrec.record(model, x, keep_op=True, keep_module="0")
    >>> report = validate_recording(model, recording, x)
    >>> bool(report), report.n_operations
    (True, 3)

    Each record has to belong to an operation of the graph, once and in the same order, with its shape, dtype and value.
    Everything that the recording's predicates keep has to be there, as far as the predicates can be read back. Model
    and random state are as before.

    Arguments:
        model, input_args, input_kwargs, call, random_seed: used to run the pass again, as in log_forward_pass; the
            model has to be in the state in which it was recorded.
        recording: the recording to check.
        pass_index: the pass that ran on these inputs, if the recording has several.
        tolerance: how far a value may be off, relative to the largest number in it: 1e-4 suits compiled models. None
            allows for rounding.

    Returns a ValidationReport; a failure is named by the record's label and site.
    """
    records = _records_of_pass(recording, pass_index)
    model = uncompiled(model, by_call=call is not None)
    roots = roots_of(model)
    with random_state_restored(), restored(roots.values()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The pass runs twice, and the dry run has to start in the same state as logging.
        with restored(roots.values()), random_state_restored():
            history = log_forward_pass(model, input_args, input_kwargs, call=call, random_seed=random_seed)
        comparison = _Comparison(history.graph, tolerance)
        for record in records:
            comparison.check(record)
        try:
            predicates = _predicates(recording)
        except PredicateError as problem:
            comparison.leave_out("what is missing", f"it is unknown what had to be kept: {problem}")
        else:
            has_sources = any(record.ctx.kind in ("input", "buffer") for record in records)
            options = {**predicates, "include_source_events": has_sources}
            dry = dry_run(model, input_args, input_kwargs, call=call, random_seed=random_seed, **options)
            comparison.check_completeness(records, dry.kept)
    return comparison.report


def _records_of_pass(recording: Recording, pass_index: int | None) -> Sequence[ActivationRecord]:
    passes = sorted({record.ctx.pass_index for record in recording})
    if pass_index is None and len(passes) != 1:
        numbers = ", ".join(map(str, passes[:8])) + (", ..." if len(passes) > 8 else "")
        raise OptionError(
            f"the recording has records of {len(passes)} passes ({numbers or 'none'}), and inputs are those of one; "
            "name it with pass_index="
        )
    if pass_index is not None and pass_index not in passes:
        passes_text = f"it has some of passes {passes[0]} to {passes[-1]}" if passes else "it has none at all"
        raise OptionError(f"pass_index={pass_index!r}: the recording has no records of that pass; {passes_text}")
    return [record for record in recording if pass_index in (None, record.ctx.pass_index)]


def _predicates(recording: Recording) -> dict[str, Any]:
    """The predicates of a recording, read back from its header; PredicateError if they can't be."""
    header = recording._source.catalog.header
    predicates = predicates_of(header)
    if not predicates:
        raise PredicateError("the recording does not name its predicates")
    for predicate in predicates.values():
        counting = sorted(predicate.reads & PASS_FIELDS)
        if counting:
            raise PredicateError(f"{predicate!r} depends on the pass ({', '.join(counting)})")
    return predicates


class _Comparison:
    """Compares records with the operations of a graph."""

    def __init__(self, graph: Graph, tolerance: float | None) -> None:
        self.report = ValidationReport()
        self._graph = graph
        self._tolerance = tolerance
        self._latest = -1

    def check(self, record: ActivationRecord) -> None:
        """Compare one record with its operation."""
        self.report.n_operations += 1
        ctx = record.ctx
        try:
            index = self._graph.records.index_of(ctx)
        except RecordKeyError as missing:
            if self._graph.records.is_module_pass(ctx):
                self.leave_out(_name(ctx), "no operation computed it: it is a parameter, or a tensor from outside")
            else:
                self._fail(ctx, str(missing))
            return
        op = self._graph.ops[index]
        if ctx.kind == "op" and ctx.is_bottom_level_func:
            if index < self._latest:
                self._fail(ctx, "it comes after a record of a later operation")
            self._latest = max(index, self._latest)
        value = op.value
        if value is None:
            self.leave_out(_name(ctx), f"the graph could not save the value: {op.unsaved}")
        elif ctx.tensor_shape != op.shape or ctx.tensor_dtype != op.dtype:
            form = f"{ctx.tensor_dtype} {tuple(ctx.tensor_shape)}"
            self._fail(ctx, f"it is a {form}, and the operation returns {op.dtype} {op.shape}")
        elif op.call.layer_type in UNINITIALISED:
            self.leave_out(_name(ctx), "uninitialised memory has no right value; shape and dtype were checked")
        else:
            self._check_values(record, value)

    def _check_values(self, record: ActivationRecord, value: Tensor) -> None:
        spec = record.spec
        if not spec.save_activation:
            return
        with torch.no_grad():
            parts = _expected_parts(value, spec)
        for part in ("activation", "transformed_activation"):
            recorded, expected = getattr(record, part), parts.get(part)
            if expected is not None and recorded is not None:
                self._check_value(record.ctx, part, recorded, expected.detach().to(kept_dtype(spec, expected.dtype)))
            elif expected is not None:
                self._fail(record.ctx, f"its {part} is missing")
            elif recorded is not None and part == "activation":
                self._fail(record.ctx, "its activation should not have been kept")
            elif recorded is not None:
                self.leave_out(_name(record.ctx), "the function that transformed it is no longer known")

    def _check_value(self, ctx: RecordContext, part: str, recorded: Tensor, expected: Tensor) -> None:
        difference = largest_difference(expected, recorded.detach(), self._tolerance)
        if isinstance(difference, str):
            self._fail(ctx, f"its {part} is not the operation's value: {difference}")
            return
        self.report.n_replayed += 1
        if difference:
            self.report.n_inexact += 1
            self.report.largest_difference = max(self.report.largest_difference, difference)

    def check_completeness(self, records: Iterable[ActivationRecord], kept: Iterable[RecordContext]) -> None:
        """Check that each event that had to be kept is there, once."""
        recorded = Counter(_event(record.ctx) for record in records)
        expected = Counter(map(_event, kept))
        for kind, label, site in (expected - recorded).elements():
            self.report.failures.append(Failure(f"{label} at {site}", f"this {kind} had to be kept, and is missing"))
        for kind, label, site in (recorded - expected).elements():
            why = f"this {kind} was kept once too often, or should not have been kept"
            self.report.failures.append(Failure(f"{label} at {site}", why))

    def leave_out(self, name: str, why: str) -> None:
        """Note what can't be checked."""
        self.report.unchecked.append(Unchecked(name, why))

    def _fail(self, ctx: RecordContext, why: str) -> None:
        self.report.failures.append(Failure(_name(ctx), why))


def _expected_parts(value: Tensor, spec: CaptureSpec) -> Mapping[str, Tensor]:
    """The parts of a value that had to be kept, as far as they are known."""
    if isinstance(spec.transform, StoredTransform):  # a file holds only the name of the function
        return parts_of(value, replace(spec, transform=None)) if spec.save_raw else {}
    return parts_of(value, spec)


def _event(ctx: RecordContext) -> tuple[str, str, str]:
    return ctx.kind, ctx.label, ctx.site


def _name(ctx: RecordContext) -> str:
    return f"{ctx.label} at {ctx.site}"
