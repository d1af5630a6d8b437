"""``fastrec.dry_run``: one pass that keeps no tensor, and shows what a recorder would see and keep.

The result holds the events of the pass without their values, so that other predicates can be tried on it
(``repredicate``) without running the model again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Any

import msgspec
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastrec._errors import FastrecWarning
from fastrec._torch.state import random_state_restored, restored, seeded
from fastrec.dryrun.decisions import Decider, Decision, Outcome, Verdict
from fastrec.dryrun.events import DryRunListener, Event
from fastrec.dryrun.report import SiteLine, site_lines, summary, summary_rows, timeline, totals
from fastrec.dryrun.tree import tree
from fastrec.engines import EagerEngine
from fastrec.engines._protocol import WatchOptions
from fastrec.events.context import PredicateFailure, RecordContext
from fastrec.recording._arrays import META_FIELDS, frame_of_columns
from fastrec.recording._records import format_bytes, format_count
from fastrec.session.inputs import NOT_GIVEN, ModelRun, roots_of
from fastrec.session.options import RecorderOptions, options_from
from fastrec.session.unmatched import Names

if TYPE_CHECKING:
    import pandas

    from fastrec.graph.draw.description import Drawing
    from fastrec.graph.draw.picture import Picture


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
    :in[0] (input)             2x4 float32  32 B
    Sequential      58 params  2x2 float32  16 B
    ├─ 0: Linear    40 params  2x8 float32  64 B
    │  └─ linear               2x8 float32  64 B
    ├─ 1: Tanh                 2x8 float32  64 B
    │  └─ tanh                 2x8 float32  64 B  ● 64 B
    └─ 2: Linear    18 params  2x2 float32  16 B
       └─ linear               2x2 float32  16 B
    1 of 12 events kept: 64 B per pass, 62.5 KiB per 1,000 passes

    Arguments:
        model: a module, or a dict name -> module.
        input_args: one positional argument, or a tuple or list of them.
        input_kwargs: keyword arguments; alone, as ``input_kwargs=batch``, for a model that takes nothing else.
        call: a function without arguments that uses the model in any way, in place of inputs. As in a recorder,
            each module that it calls makes a pass, and ops outside of modules are in none.
        recorder_options: the options of Recorder. Without ``keep_op`` and ``keep_module`` everything is shown and
            nothing is kept; ``sink`` and ``retain`` have no effect here. Inputs and buffers are always shown, but are
            only kept with ``include_source_events=True``.

    Returns a DryRun. The pass is the first one of its entry, and with ``call`` the passes are those that it makes; they
    are in no phase. Afterwards the model is what it was: parameters, buffers, other attributes, flags, gradients and
    random states. An error that a predicate raises is shown at its event.
    """
    roots = roots_of(model)
    run = ModelRun.of(roots, input_args, input_kwargs, call)
    return dry_run_of(roots, lambda engine: run.passes(), options_from(recorder_options)).warned(3)


def dry_run_in_region(
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any,
    input_kwargs: Mapping[str, Any] | None,
    call: Callable[[], Any] | None,
    recorder_options: dict[str, Any],
) -> DryRun:
    """The same with a ``call`` that makes one pass, as ``record`` and the graph make one of it."""
    roots = roots_of(model)
    run = ModelRun.of(roots, input_args, input_kwargs, call)
    return dry_run_of(roots, run, options_from(recorder_options)).warned(4)


def dry_run_of(roots: Mapping[str, Any], run: Callable[[Any], Any], options: RecorderOptions) -> DryRun:
    """Run something under an engine that keeps nothing; ``run`` gets the engine."""
    decider = Decider(options, roots)
    events: list[Event] = []
    outcomes: list[Outcome] = []

    def on_event(event: Event, value: Tensor) -> None:
        events.append(event)
        outcomes.append(decider.outcome(event, value))

    listener = DryRunListener(options, on_event)
    engine: Any = options.engine
    if isinstance(engine, str):
        engine = EagerEngine(WatchOptions(sources=True, parents=True), allow_unfused=options.allow_unfused)
    with restored(roots.values()), random_state_restored(), seeded(options.random_seed):
        engine.open(roots, listener)
        try:
            run(engine)
            names = Names.of(engine, {event.site.layer_type for event in events if event.site.kind == "op"})
        finally:
            engine.close()
        parameters = _parameters(roots)  # before lazy modules are lazy again
    title = ", ".join(type(root).__name__ for root in roots.values())
    return DryRun(title, parameters, events, outcomes, decider, names)


def _parameters(roots: Mapping[str, nn.Module]) -> dict[str, int]:
    """How many parameters each module has with those inside it, by address."""
    return {
        f"{name}.{address}" if name and address else name or address: sum(
            p.numel() for p in module.parameters() if not is_lazy(p)
        )
        for name, root in roots.items()
        for address, module in root.named_modules()
    }


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
        self,
        title: str,
        parameters: Mapping[str, int],
        events: Sequence[Event],
        outcomes: Sequence[Outcome],
        decider: Decider,
        names: Names,
    ) -> None:
        self._title = title
        self._parameters = parameters
        self._events = events
        self._outcomes = outcomes
        self._decider = decider
        self._names = names

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
    def outcomes(self) -> tuple[Outcome, ...]:
        """What becomes of each event: its decision, the bytes that are kept, its verdict."""
        return tuple(self._outcomes)

    @property
    def totals(self) -> list[str]:
        """What is kept of the whole pass, in a few lines."""
        return totals(self._lines, self.halted)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What becomes of each event, in a word.

        ``"kept"``; ``"rejected"``: it could be kept; ``"unreachable"``: it can't be, as these options are: an input or
        a buffer without ``include_source_events``, or what comes after a halt; ``"failed"``: an error.
        """
        return tuple(outcome.verdict for outcome in self._outcomes)

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
        outcomes = [decider.outcome(event) for event in self._events]
        return DryRun(self._title, self._parameters, self._events, outcomes, decider, self._names).warned(3)

    def warned(self, stacklevel: int) -> DryRun:
        """The same, after warnings about names in its predicates that match nothing that ran."""
        plan, names = self._decider.plan, self._names
        for message in (*names.unmatched("keep_op", plan.keep_op), *names.unmatched("keep_module", plan.keep_module)):
            warnings.warn(message, FastrecWarning, stacklevel)
        return self

    def tree(self, depth: int | None = None, *, fold_repeats: bool = True) -> str:
        """The text that ``print_tree`` prints."""
        return tree(self._lines, self.halted, self._parameters, depth=depth, fold_repeats=fold_repeats)

    def print_tree(self, depth: int | None = None, *, fold_repeats: bool = True) -> None:
        """Print the modules that ran as a tree, with their ops; ● marks what is kept, ✗ an error.

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(12)), torch.nn.Tanh())
        >>> fastrec.dry_run(model, torch.zeros(2, 4), keep_op="tanh").print_tree()
        :in[0] (input)                      2x4 float32  32 B
        Sequential              240 params  2x4 float32  32 B
        ├─ 0 to 11: Linear x12  20 params   2x4 float32  32 B
        │  └─ linear                        2x4 float32  32 B
        └─ 12: Tanh                         2x4 float32  32 B
           └─ tanh                          2x4 float32  32 B  ● 32 B
        1 of 42 events kept: 32 B per pass, 31.2 KiB per 1,000 passes

        Arguments:
            depth: how many levels of modules are shown with what is in them: 1 shows each top-level module as one
                line, which tells what is kept of all that is in it; None shows all.
            fold_repeats: show three or more modules in a row that do the same, and of which the same is kept, as one.
        """
        print(self.tree(depth, fold_repeats=fold_repeats))

    def summary(self) -> str:
        """A table of all sites: how often each fires in a pass, the bytes of its values, and what is kept of it.

        The bytes per thousand passes take into account predicates that count passes, such as ``every(10)``; any other
        predicate is taken to answer in each pass as it did in this one.
        """
        return summary(self._lines, self.halted)

    def drawing(self, **options: Any) -> Drawing:
        """The description of the picture that ``draw`` makes."""
        # What draws is loaded when somebody draws.
        from fastrec.dryrun.drawing import drawing_of
        from fastrec.graph.draw.options import drawing_options

        return drawing_of(self._title, self._events, self._outcomes, drawing_options(options), self.totals)

    def draw(
        self,
        path: str | PathLike[str] | None = None,
        *,
        format: str | None = None,
        seconds: float = 60.0,
        overwrite: bool = False,
        **options: Any,
    ) -> Picture:
        """Draw the ops that ran and where their values went, coloured by what becomes of them.

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> picture = fastrec.dry_run(model, torch.zeros(2, 4), keep_op="tanh").draw(format="mermaid")
        >>> "kept: 64 B per pass" in picture.text
        True

        Sky blue is kept, white rejected, pale gray unreachable, vermilion failing; see ``verdicts``.

        Arguments:
            path, format, seconds, overwrite: as for fastrec.graph.show_model_graph.
            options: ``vis_nesting_depth``, ``fold_repeats``, ``buffers``, ``direction``.

        Values are followed from op to op; what an op writes through a view of a value is not. fastrec.graph.preview
        draws the same marks on the whole graph of the pass, which follows that, too.
        """
        from fastrec.graph.draw.picture import draw

        return draw(lambda: self.drawing(**options), path, format, seconds=seconds, overwrite=overwrite)

    def to_html(self, path: str | PathLike[str], *, overwrite: bool = False, **options: Any) -> None:
        """Write the drawing as a page that opens from disk, in which modules open; arguments as for ``draw``.

        >>> import tempfile, torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> fastrec.dry_run(model, torch.zeros(2, 4), keep_op="tanh").to_html(tempfile.mkdtemp() + "/kept.html")
        """
        from fastrec.graph.draw.page import write_drawing

        write_drawing(lambda: self.drawing(**options), path, overwrite=overwrite)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per event, with the fields of its context and what is kept of it; needs the extra ``pandas``."""
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
        return frame_of_columns(columns)

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
