"""``fastrec.dry_run``: one pass that keeps no tensor, and shows what a recorder would see and keep.

The result holds the events of the pass without their values, so that other predicates can be tried on it
(``repredicate``) without running the model again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import msgspec
from torch import Tensor, nn

from fastrec._errors import FastrecWarning
from fastrec._optional import require
from fastrec._torch.state import random_state_restored, restored, seeded
from fastrec.dryrun.decisions import Decider, Decision, Outcome
from fastrec.dryrun.events import DryRunListener, Event
from fastrec.dryrun.report import SiteLine, site_lines, summary, summary_rows, timeline, tree
from fastrec.engines import EagerEngine
from fastrec.engines._protocol import WatchOptions
from fastrec.events.context import PredicateFailure, RecordContext
from fastrec.recording._arrays import META_FIELDS
from fastrec.recording._records import format_bytes, format_count
from fastrec.session.inputs import NOT_GIVEN, ModelRun, roots_of
from fastrec.session.options import options_from
from fastrec.session.unmatched import Names

if TYPE_CHECKING:
    import pandas


def dry_run(
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    **recorder_options: Any,
) -> DryRun:
    """Run a model once, and show what happens in it, what predicates would keep, and how large that is.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> dry = fastrec.dry_run(model, torch.zeros(2, 4), keep_op="tanh")
    >>> [ctx.label for ctx in dry.kept], sum(dry.sizes)
    (['tanh_1'], 64)
    >>> dry.print_tree()
    :in[0] (input)  2x4 float32  32 B
    Sequential      2x2 float32  16 B
    ├─ 0: Linear    2x8 float32  64 B
    │  └─ linear    2x8 float32  64 B
    ├─ 1: Tanh      2x8 float32  64 B
    │  └─ tanh      2x8 float32  64 B  ● 64 B
    └─ 2: Linear    2x2 float32  16 B
       └─ linear    2x2 float32  16 B
    1 of 12 events kept: 64 B per pass, 62.5 KiB per 1,000 passes

    Arguments:
        model: a module, or a dict name -> module.
        input_args: one positional argument, or a tuple or list of them.
        input_kwargs: keyword arguments; alone, as ``input_kwargs=batch``, for a model that takes nothing else.
        call: a function without arguments that uses the model in any way, in place of inputs.
        recorder_options: the options of Recorder. Without ``keep_op`` and ``keep_module`` everything is shown and
            nothing is kept; ``sink`` and ``retain`` have no effect here. Inputs and buffers are always shown, but are
            only kept with ``include_source_events=True``.

    Returns a DryRun. The pass is the first one of its entry, and in no phase. Afterwards the model is
    what it was: parameters, buffers, other attributes, flags and gradients; and so are random states. An error that a
    predicate raises is shown at its event.
    """
    roots = roots_of(model)
    run = ModelRun.of(roots, input_args, input_kwargs, call)
    options = options_from(recorder_options)
    decider = Decider(options, roots)
    events: list[Event] = []
    outcomes: list[Outcome] = []

    def on_event(event: Event, value: Tensor) -> None:
        events.append(event)
        outcomes.append(decider.outcome(event, value))

    listener = DryRunListener(options, on_event)
    engine: Any = options.engine
    if isinstance(engine, str):
        watch = WatchOptions(sources=True, parents=options.track_parents)
        engine = EagerEngine(watch, allow_unfused=options.allow_unfused)
    with restored(roots.values()), random_state_restored(), seeded(options.random_seed):
        engine.open(roots, listener)
        try:
            run(engine)
            names = Names.of(engine, {event.site.layer_type for event in events if event.site.kind == "op"})
        finally:
            engine.close()
    title = ", ".join(type(root).__name__ for root in roots.values())
    return DryRun(title, events, outcomes, decider, names)


class DryRun:
    """Every event of one pass, what predicates say about it, and the bytes that would be kept; it holds no tensor.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    >>> dry = fastrec.dry_run(model, torch.zeros(2, 4))
    >>> dry
    <DryRun of Sequential: 9 events, 0 kept, 0 B per pass>
    >>> dry.repredicate(keep_op="tanh")
    <DryRun of Sequential: 9 events, 1 kept, 64 B per pass>

    The elements of ``contexts``, ``decisions`` and ``sizes`` at one position belong to one event.
    """

    def __init__(
        self, title: str, events: Sequence[Event], outcomes: Sequence[Outcome], decider: Decider, names: Names
    ) -> None:
        self._title = title
        self._events = events
        self._outcomes = outcomes
        self._decider = decider
        self._names = names
        plan = decider.plan
        for message in (*names.unmatched("keep_op", plan.keep_op), *names.unmatched("keep_module", plan.keep_module)):
            warnings.warn(message, FastrecWarning, stacklevel=3)

    @cached_property
    def contexts(self) -> tuple[RecordContext, ...]:
        """The context of each event, in order: ops, modules entered and left, inputs, buffers."""
        return tuple(event.ctx for event in self._events)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """How each event is kept (a CaptureSpec); None if it is not kept; or a PredicateFailure with the ``error``."""
        return tuple(outcome.decision for outcome in self._outcomes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bytes that are kept of each event after casting and transforming, without gradients."""
        return tuple(outcome.nbytes for outcome in self._outcomes)

    @property
    def kept(self) -> tuple[RecordContext, ...]:
        """The contexts of the events that are kept."""
        return tuple(ctx for ctx, outcome in zip(self.contexts, self._outcomes, strict=True) if _is_kept(outcome))

    @property
    def halted(self) -> Mapping[int, str]:
        """Why a pass would be halted, by pass index; later events of that pass are shown, and not kept."""
        return dict(self._decider.halted)

    def repredicate(self, *, keep_op: Any = None, keep_module: Any = None) -> DryRun:
        """Ask other predicates about the same events, without running the model.

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> dry = fastrec.dry_run(model, torch.zeros(2, 4), keep_op=True)
        >>> [ctx.site for ctx in dry.repredicate(keep_module="0").kept]
        ['0']

        Arguments:
            keep_op, keep_module: as for Recorder; the one that is not given keeps nothing.

        A transform is run on zeros of the same shape, because the values are gone.
        """
        options = msgspec.structs.replace(self._decider.options, keep_op=keep_op, keep_module=keep_module)
        decider = Decider(options, self._decider.roots)
        return DryRun(
            self._title, self._events, [decider.outcome(event) for event in self._events], decider, self._names
        )

    def tree(self) -> str:
        """The modules that ran as a tree, with their ops; ● marks what is kept, ✗ an error."""
        return tree(self._lines, self.halted)

    def print_tree(self) -> None:
        """Print the modules that ran as a tree, with their ops; ● marks what is kept, ✗ an error.

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> fastrec.dry_run(model, torch.zeros(2, 4), keep_op="tanh").print_tree()
        :in[0] (input)  2x4 float32  32 B
        Sequential      2x8 float32  64 B
        ├─ 0: Linear    2x8 float32  64 B
        │  └─ linear    2x8 float32  64 B
        └─ 1: Tanh      2x8 float32  64 B
           └─ tanh      2x8 float32  64 B  ● 64 B
        1 of 9 events kept: 64 B per pass, 62.5 KiB per 1,000 passes
        """
        print(self.tree())

    def summary(self) -> str:
        """A table of all sites: how often each fires in a pass, the bytes of its values, and what is kept of it.

        The bytes per thousand passes take into account predicates that count passes, such as ``every(10)``; any other
        predicate is taken to answer in each pass as it did in this one.
        """
        return summary(self._lines, self.halted)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per event, with the fields of its context and what is kept of it; needs the extra ``pandas``."""
        package = require("pandas", extra="pandas", what="to_pandas()")
        columns: dict[str, list[Any]] = {
            name: [getattr(ctx, name) for ctx in self.contexts]
            for name in ("pass_index", "phase", "entry", "entry_pass", "grad_enabled")
        }
        for name, read in META_FIELDS.items():
            columns[name] = [read(event.meta, event.site) for event in self._events]
        columns["time_since_pass_start"] = [event.time for event in self._events]
        columns["value_bytes"] = [event.nbytes for event in self._events]
        columns["kept"] = [_is_kept(outcome) for outcome in self._outcomes]
        columns["kept_bytes"] = list(self.sizes)
        columns["capture"] = [repr(outcome.decision) if _is_kept(outcome) else None for outcome in self._outcomes]
        columns["error"] = [
            decision.error if isinstance(decision, PredicateFailure) else None for decision in self.decisions
        ]
        frame: pandas.DataFrame = package.DataFrame(columns)
        return frame

    def timeline_html(self) -> str:
        """The pass as a picture for a notebook: events from left to right, modules as bars, kept events coloured."""
        return timeline(self._description, self._events, self._outcomes)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in summary_rows(self._lines)
        )
        return f"<details><summary>sites</summary><table>{rows}</table></details>{self.timeline_html()}"

    def __repr__(self) -> str:
        return f"<DryRun of {self._description}>"

    @property
    def _description(self) -> str:
        n_kept = sum(map(_is_kept, self._outcomes))
        n_errors = sum(isinstance(decision, PredicateFailure) for decision in self.decisions)
        errors = f", {format_count(n_errors, 'error')}" if n_errors else ""
        events = format_count(len(self._events), "event")
        return f"{self._title}: {events}, {n_kept} kept, {format_bytes(sum(self.sizes))} per pass{errors}"

    @cached_property
    def _lines(self) -> list[SiteLine]:
        return site_lines(self._events, self._outcomes, self._decider)


def _is_kept(outcome: Outcome) -> bool:
    return outcome.decision is not None and not isinstance(outcome.decision, PredicateFailure)
