"""The recorder: the public class that opens a session around an unchanged loop.

It turns options into the parts of a session (roots, plan, sinks, engine), opens and closes them together, and warns at
the end about what can't have been meant. All that happens while it records is up to ``Session`` and the engine.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from fastrec import engines
from fastrec._errors import FastrecWarning, OptionError, SessionError, did_you_mean
from fastrec._torch.collectives import tensor_parallel_modules
from fastrec._torch.process import FORKS
from fastrec._torch.state import seeded
from fastrec.engines import EagerEngine, is_compiled
from fastrec.engines._protocol import Engine, WatchOptions
from fastrec.events.sites import Catalog
from fastrec.recording._recording import Recording
from fastrec.session.inputs import NOT_GIVEN, args_of, check_inputs, checked_sample_id, roots_of
from fastrec.session.options import GRADIENTS_NEED_RAM, RecorderOptions, options_from
from fastrec.session.pass_batch import pass_batch
from fastrec.session.plan import Plan
from fastrec.session.session import Session
from fastrec.session.taps import PassRun, skips_pass
from fastrec.session.unmatched import Names
from fastrec.sinks import HDF5Sink, RAMSink
from fastrec.sinks._options import TeeSink, sinks_from_option
from fastrec.sinks._steps import step_columns


class Recorder:
    """Records what a model computes inside a ``with`` block, whoever calls it, and keeps what predicates ask for.

    >>> import torch, fastrec
    >>> policy = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> with fastrec.Recorder(policy, keep_op="tanh") as rec:
    ...     for _ in range(3):
    ...         with torch.no_grad():
    ...             action = policy(torch.zeros(5, 4))
    >>> rec.recording.stack("1/tanh").shape
    torch.Size([3, 5, 8])

    Arguments:
        model: a module, or a dict name -> module to record several roots.
        keep_op: which op, input and buffer events to keep: a predicate, a callable ``ctx -> bool | CaptureSpec``, op
            types as a string or list of strings (globs), or True for all ops.
        keep_module: which module events to keep: the same, with strings as module addresses (their outputs).
        capture: how kept values are copied, a CaptureSpec.
        sink: where records go: a path that ends in .h5 or .hdf5, a sink, or a list of them; by default RAM.
        engine: "auto" (compiled for a model that ``torch.compile`` made, else eager), "eager" or "compiled"; "static"
            where every pass runs the same ops; or an engine object.
        check_every: the static engine runs one pass eagerly after so many passes of an entry, to compare; default 1000.
        history_size: how many recent events and ops a context shows; default 8.
        include_source_events: inputs of a pass and buffers that are read become events.
        track_parents: contexts know the labels of the values that an op read.
        train_mode: the default capture keeps gradients.
        retain: RAM keeps the last n steps, or passes where there are no steps; by default all.
        halt: a predicate that ends the pass after the event that it matches.
        returns_none: a halted call that a framework made returns None; without it that is an error.
        autoreset: "next_step" or "same_step", how vectorised environments reset (Gymnasium's meaning).
        on_predicate_error: "raise", or "collect" to skip the event and go on.
        on_forward_error: "drop" a pass that raised, or "keep" what it recorded, with its outcome "failed".
        random_seed: set before each call by ``rec.log``; the random state is restored after it.
        allow_unfused: a transformer module whose inside is kept runs without its fused kernel also where that changes
            its output beyond the last bits, as with a padding mask; without it that is an error.

    Raises OptionError for options that contradict each other, UnsupportedModelError for models that can't be recorded.
    """

    def __init__(self, model: nn.Module | Mapping[str, nn.Module], **options: Any) -> None:
        self.options = options_from(options)
        self._roots = roots_of(model)
        self._plan = Plan(self.options, self._roots)
        self._plan.check_can_keep()
        self._sinks = sinks_from_option(self.options.sink)
        self._ram = next((sink for sink in self._sinks if isinstance(sink, RAMSink)), None)
        if self._ram is None and self._plan.asks_for_gradients(self.options.default_capture):
            raise OptionError(GRADIENTS_NEED_RAM)
        if self._ram is None and self.options.retain is not None:
            raise OptionError("retain= concerns RAM, and no sink is in RAM; leave it out, as a file keeps everything")
        self._session: Session | None = None
        self._engine: Any = None
        self._state = "new"
        self._forks = FORKS.count
        self._catalog = Catalog(
            {
                "keep_op": repr(self._plan.keep_op),
                "keep_module": repr(self._plan.keep_module),
                "autoreset": self.options.autoreset,
                "history_size": self.options.history_size,
                "roots": {name: type(root).__name__ for name, root in self._roots.items()},
                "torch": str(torch.__version__),
            }
        )

    def __enter__(self) -> Recorder:
        if self._state != "new":
            raise SessionError(f"this recorder is {self._state}, and a recorder is used once; make another one")
        sink = self._sinks[0] if len(self._sinks) == 1 else TeeSink(self._sinks)
        self._engine = self._make_engine()
        self._session = Session(self.options, self._plan, self._catalog, sink, self._ram, self._engine)
        try:
            self._engine.open(self._roots, self._session)
        except BaseException:
            self._session.close()
            self._discard_unused()
            raise
        self._state = "open"
        _warn_about_shards(self._roots)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if FORKS.count != self._forks:  # a forked child leaves the block too, but the session is its parent's
            return
        session, self._state = self._open(), "closed"
        self._engine.close()
        session.close()
        if error is not None:
            self._discard_unused()
        else:
            session.warn_about_failures()
            _warn_about_nothing(session, self._plan, self._engine)

    def start(self) -> Recorder:
        """Begin to record, as entering the ``with`` block does; for notebooks, where a block can't span cells.

        >>> import torch, fastrec
        >>> model = torch.nn.Linear(4, 2)
        >>> rec = fastrec.Recorder(model, keep_op="linear").start()
        >>> out = model(torch.ones(3, 4))
        >>> rec.stop()
        >>> rec.recording.stack("linear_1").shape
        torch.Size([1, 3, 2])
        """
        return self.__enter__()

    def stop(self) -> None:
        """End what ``start`` began, as leaving the ``with`` block does."""
        self.__exit__(None, None, None)

    def log(
        self,
        input_args: Any = NOT_GIVEN,
        input_kwargs: Mapping[str, Any] | None = None,
        *,
        sample_id: str | int | Sequence[str | int] | None = None,
        root: str | None = None,
    ) -> Any:
        """Call the model, with a sample id; the call is recorded like any other.

        >>> import torch, fastrec
        >>> model = torch.nn.Linear(4, 2)
        >>> with fastrec.Recorder(model, keep_op="linear") as rec:
        ...     out = rec.log(torch.zeros(1, 4), sample_id="a")
        >>> rec.recording[0].ctx.sample_id
        'a'

        Arguments:
            input_args: one positional argument, or a tuple or list of them.
            input_kwargs: keyword arguments; alone for a model that takes nothing else.
            sample_id: a string or number that the records of this pass carry; or a list of them, one for each sample
                of the batch, which ``rows(key, by="sample").sample_id`` gives to each row.
            root: which root to call, where there are several.

        Returns the model's output, or None if the pass was halted.
        """
        session = self._open()
        check_inputs(input_args, input_kwargs, None)
        model = self._root(root)
        with session.own_call(checked_sample_id(sample_id)), seeded(self.options.random_seed):
            return model(*args_of(input_args, model), **(input_kwargs or {}))

    def step(self, **columns: Any) -> None:
        """Close a step: the passes that ended since the last mark in this phase belong to it.

        Call it after ``env.step``, with what the environment returned.

        Arguments:
            columns: numbers or arrays of numbers. ``terminated``, ``truncated`` or else ``reward`` say how many
                environments there are, by one value for each; a single value means one environment. Other columns are
                of shape ``[envs, *shape]`` then (``action``, ``goal``), of any shape with one environment,
                or one number.

        Raises StepError for columns that are not numbers, that disagree on how many environments there are, or that
        change their shape within a phase.
        """
        session = self._open()
        session.mark(step_columns(columns))
        session.retain(steps=True)

    def phase(self, name: str | Callable[[str], str]) -> AbstractContextManager[None]:
        """Name a stretch of the run: passes that begin inside the block belong to this phase.

        >>> import torch, fastrec
        >>> agent = torch.nn.ModuleDict({"actor": torch.nn.Linear(4, 2), "critic": torch.nn.Linear(4, 1)})
        >>> with fastrec.Recorder(agent, keep_op="linear") as rec:
        ...     with rec.phase("rollout"):
        ...         action = agent["actor"](torch.zeros(1, 4))
        ...     with rec.phase(lambda entry: "acting" if entry == "actor" else "judging"):
        ...         value = agent["critic"](torch.zeros(1, 4))
        >>> [record.ctx.phase for record in rec.recording]
        ['rollout', 'judging']

        Arguments:
            name: the phase; or a function that gets the entry of each pass that begins and returns its phase, for code
                that can't be divided into blocks. Steps can't be marked while a function names the phase.
        """
        session = self._open()
        if not (isinstance(name, str) or callable(name)):
            raise OptionError(f"phase({name!r}): give a name, such as 'rollout', or a function entry -> name")
        return session.phase(name)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing of the passes that begin inside the block."""
        with self._open().pause():
            yield

    @contextmanager
    def region(self, name: str = "region") -> Iterator[None]:
        """Make everything that this thread runs inside the block one pass, including ops outside any module."""
        session = self._open()
        with session.own_call():
            token = self._engine.enter_region(name)
        if token is None:  # paused
            yield
            return
        try:
            yield
        except BaseException as error:
            if not self._engine.leave_region(token, error):
                raise
        else:
            self._engine.leave_region(token, None)

    def flush(self) -> None:
        """Return once the passes that ended are in the files of this session, safe even if the process is killed."""
        self._open()
        for sink in self._sinks:
            if isinstance(sink, HDF5Sink):
                sink.flush()

    @property
    def recording(self) -> Recording:
        """What has been recorded so far, from RAM or else from the file, which is flushed first.

        A pass appears when it ends.
        """
        if self._state == "new":
            raise SessionError("nothing was recorded yet; open the recorder with `with Recorder(...) as rec:`")
        file = next((sink for sink in self._sinks if isinstance(sink, HDF5Sink)), None)
        if self._ram is not None or file is None:
            return Recording(self._in_ram("recording").source())
        if self._state == "open" and FORKS.count == self._forks:
            file.flush()
        from fastrec.sinks.hdf5.merged import open_source  # loads h5py, which a session in RAM doesn't need

        return Recording(open_source(file.path))

    def pop(self) -> Recording:
        """Hand over the passes that ended, and forget them."""
        session, ram = self._session, self._ram
        # A training loop calls this after each pass, so the usual case is one condition.
        if session is None or ram is None or self._state != "open" or FORKS.count != self._forks:
            session, ram = self._open(), self._in_ram("pop()")
        session.forget_attached()
        return Recording(ram.take())

    def __repr__(self) -> str:
        roots = ", ".join(f"{name}={type(m).__name__}" if name else type(m).__name__ for name, m in self._roots.items())
        return f"<Recorder of {roots}: {self._state}>"

    def _discard_unused(self) -> None:
        for sink in self._sinks:
            if isinstance(sink, HDF5Sink):
                sink.discard_unused()

    def _records_compiled(self) -> bool:
        engine = self.options.engine
        return engine == "compiled" or (engine == "auto" and any(map(is_compiled, self._roots.values())))

    def _make_engine(self) -> Engine[PassRun]:
        engine = self.options.engine
        if not isinstance(engine, str):
            return engine  # type: ignore[no-any-return]
        make_batch = partial(pass_batch, self._sinks[0] if len(self._sinks) == 1 else None)
        pass_filter = self._plan.pass_filter(self._catalog)
        watch = WatchOptions(self._plan.watches_ops, self.options.include_source_events, self.options.track_parents)
        if self._records_compiled():
            self._plan.check_compilable(self.options.default_capture)
            return engines.CompiledEngine(watch, make_batch=make_batch, pass_filter=pass_filter)
        if engine == "static":
            return engines.StaticEngine(
                watch,
                make_skip_test=skips_pass,
                make_batch=make_batch,
                check_every=self.options.check_every,
                pass_filter=pass_filter,
                allow_unfused=self.options.allow_unfused,
            )
        return EagerEngine(watch, pass_filter=pass_filter, allow_unfused=self.options.allow_unfused)

    def _open(self) -> Session:
        if FORKS.count != self._forks:
            raise SessionError(
                "this recorder was opened in another process, and a forked child can't write to it; open another "
                "recorder in the child"
            )
        if self._session is None or self._state != "open":
            raise SessionError(f"this recorder is {self._state}; use it inside its `with Recorder(...) as rec:` block")
        return self._session

    def _root(self, name: str | None) -> Any:
        if name is None:
            if len(self._roots) > 1:
                raise OptionError(f"there are several roots; say which: root={' or '.join(map(repr, self._roots))}")
            return next(iter(self._roots.values()))
        if name not in self._roots:
            raise OptionError(f"there is no root {name!r}; {did_you_mean(name, self._roots)}")
        return self._roots[name]

    def _in_ram(self, what: str) -> RAMSink:
        if self._ram is None:
            files = [sink.path for sink in self._sinks if isinstance(sink, HDF5Sink)]
            load = f"read it with fastrec.load({files[0]!r}), or add RAM, " if files else "add RAM, "
            raise SessionError(
                f"{what} reads from RAM, and this session writes elsewhere only; {load}sink=[RAMSink(), ...]"
            )
        return self._ram


def _signature() -> inspect.Signature:
    kind = inspect.Parameter
    first = [kind("self", kind.POSITIONAL_OR_KEYWORD), kind("model", kind.POSITIONAL_OR_KEYWORD)]
    defaults = RecorderOptions()
    options = [
        kind(name, kind.KEYWORD_ONLY, default=getattr(defaults, name)) for name in RecorderOptions.__struct_fields__
    ]
    return inspect.Signature([*first, *options])


# The options are declared once, in RecorderOptions; this shows them in help() and editors.
Recorder.__init__.__signature__ = _signature()  # type: ignore[attr-defined]


def _warn_about_shards(roots: Mapping[str, Any]) -> None:
    """Warn where values may be parts, because nothing in the values tells."""
    for root in roots.values():
        placements = tensor_parallel_modules(root) if isinstance(root, nn.Module) else {}
        if placements:
            address, placement = next(iter(placements.items()))
            warnings.warn(
                f"{type(root).__name__} is sharded by tensor parallelism ({len(placements)} modules; {address!r} has "
                f"the placement {placement}), so values between such modules are this rank's part of what the whole "
                "model computes; read the ranks one by one, as in recording.select(rank=0), and join the parts with "
                "torch.cat along the sharded dimension",
                FastrecWarning,
                stacklevel=3,
            )


def _warn_about_nothing(session: Session, plan: Plan, engine: Engine[PassRun]) -> None:
    """Warn where no pass ran, or where a glob matched nothing that did."""
    for message in _messages_about_nothing(session, plan, engine):
        warnings.warn(message, FastrecWarning, stacklevel=3)


def _messages_about_nothing(session: Session, plan: Plan, engine: Engine[PassRun]) -> Iterator[str]:
    if not len(session.catalog.entries):
        yield (
            "no pass was recorded: the model was not called inside the block, or only in another process, inside "
            "compiled code, or while the recorder was paused"
        )
        return
    names = Names.of(engine, session.seen_layer_types, session.catalog.phases.items, session.catalog.entries.items)
    yield from names.unmatched("keep_op", plan.keep_op)
    yield from names.unmatched("keep_module", plan.keep_module)
    if not engine.is_compiled:
        yield from names.without_tensors(plan.keep_module, session.modules_without_tensors())
